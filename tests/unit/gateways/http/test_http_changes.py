"""Changes as they happen and as they happened: applied one after the other they are the views, forwards and back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from aetherscale.gateways.http import events, live
from tests.support.http_node import Events, HttpNode, event_stream, vm

View = dict[str, Any]


async def make(client: httpx.AsyncClient, *names: str) -> None:
    for name in names:
        assert (await client.post("/v1/networks?wait=30", json={"name": name})).status_code == 201


async def objects_seqs(node: HttpNode) -> list[int]:
    """The positions of all events that have an object."""
    return [each.seq for each in await node.memory.events() if not each.stream.startswith("claim-")]


async def told(stream: Events, count: int) -> list[dict[str, Any]]:
    found = []
    for _ in range(count):
        event = await stream.next()
        change: dict[str, Any] = json.loads(event["data"])
        assert event["id"] == change["cursor"] == str(change["seq"])
        assert event["event"] == change["type"]
        found.append(change)
    return found


def applied(views: dict[str, View], change: dict[str, Any]) -> None:
    """What a page does with a change: what was there has to be what it knows."""
    view = views.setdefault(change["id"], {})
    for name, (before, after) in change["set"].items():
        assert view.get(name) == before, (change["seq"], name)
        view[name] = after
    view["revision"] = change["revision"]


async def test_a_page_that_applies_what_it_is_told_has_the_views_of_the_node(
    node: HttpNode, client: httpx.AsyncClient
) -> None:
    await node.image()
    async with event_stream(client, "/v1/changes?after=0") as stream, node.unix() as other:
        made = await vm(other)
        await other.post("/v1/vms/web/actions?wait=60", json={"action": "stop"})
        changes = await told(stream, len(await objects_seqs(node)))
        shown = (await other.get("/v1/vms/web")).json()
    views: dict[str, View] = {}
    for change in changes:
        applied(views, change)
    assert views[made["id"]] == shown
    assert [change["seq"] for change in changes] == await objects_seqs(node)
    own = [change for change in changes if change["id"] == made["id"]]
    assert [change["revision"] for change in own] == list(range(1, len(own) + 1))
    for change in reversed(own[1:]):
        for name, (before, after) in change["set"].items():
            assert shown[name] == after
            shown[name] = before
    first = {name: after for name, (_, after) in own[0]["set"].items()}
    assert {**shown, "revision": None} == {**first, "revision": None}, "and back to the first"


async def test_a_change_says_who_what_and_in_which_words(node: HttpNode, client: httpx.AsyncClient) -> None:
    async with event_stream(client, "/v1/changes") as stream, node.tcp(Aether_Correlation_Id="corr-7") as other:
        await other.post("/v1/networks?wait=30", json={"name": "lab"}, headers={"Idempotency-Key": "the-key"})
        asked, up = await told(stream, 2)
    assert asked.keys() == {
        "cursor", "seq", "time", "node", "kind", "id", "type", "revision", "set", "role", "text", "actor", "command-id",
        "correlation-id",
    }  # fmt: skip
    assert (asked["type"], asked["role"], asked["kind"], asked["node"]) == (
        "NetworkRequested",
        "request",
        "network",
        "host1",
    )
    assert (asked["command-id"], asked["correlation-id"]) == ("the-key", "corr-7")
    assert asked["actor"].startswith("unix:")
    assert asked["set"]["name"] == [None, "lab"]
    assert asked["text"].startswith("asked")
    assert (up["type"], up["role"], up["actor"]) == ("NetworkUp", "consequence", "aether:network")
    assert up["set"]["phase"][1] == "ready"


async def test_a_reader_goes_on_where_it_ended_from_what_is_kept_and_from_the_past(
    node: HttpNode, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fold of what happens keeps two changes here, so that what is told is of both sides of its beginning."""
    monkeypatch.setattr(live, "MAX_KEPT", 2)
    await make(client, "a", "b")
    seen: list[int] = []
    async with event_stream(client, "/v1/changes?after=0") as stream:
        seen += [each["seq"] for each in await told(stream, 3)]
        async with node.unix() as other:
            await make(other, "c", "d")
        async with event_stream(client, "/v1/changes", Last_Event_ID=str(seen[-1])) as again:
            wanted = await objects_seqs(node)
            seen += [each["seq"] for each in await told(again, len(wanted) - 3)]
            async with node.unix() as other:
                await make(other, "e")
            wanted = await objects_seqs(node)
            seen += [each["seq"] for each in await told(again, len(wanted) - len(seen))]
    assert seen == wanted


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("kind=network", {"NetworkRequested", "NetworkUp"}),
        ("kind=network,group&type=GroupRequested", {"GroupRequested"}),
        ("role=request", {"NetworkRequested", "GroupRequested"}),
        ("role=consequence&kind=network", {"NetworkUp"}),
        ("id=lab", {"NetworkRequested", "NetworkUp"}),
        ("actor=aether:network", {"NetworkUp"}),
    ],
)
async def test_a_filter_leaves_out_what_does_not_fit_now_and_then(
    node: HttpNode, client: httpx.AsyncClient, query: str, expected: set[str]
) -> None:
    await make(client, "lab")
    await client.post("/v1/firewall/groups?wait=30", json={"name": "g"})
    head = (await client.get(f"/v1/changes?until={(await objects_seqs(node))[-1]}&{query}")).json()
    assert {change["type"] for change in head["changes"]} == expected
    async with event_stream(client, f"/v1/changes?after=0&{query}") as stream:
        assert {each["type"] for each in await told(stream, len(head["changes"]))} == expected


async def test_a_span_is_one_value_that_stays(node: HttpNode, client: httpx.AsyncClient) -> None:
    await make(client, "a", "b")
    seqs = await objects_seqs(node)
    answer = await client.get(f"/v1/changes?after={seqs[0]}&until={seqs[2]}")
    found = answer.json()
    assert [each["seq"] for each in found["changes"]] == seqs[1:3]
    assert (found["after"], found["until"]) == (seqs[0], seqs[2])
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    tag = answer.headers["etag"]
    again = await client.get(f"/v1/changes?after={seqs[0]}&until={seqs[2]}", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    present = await client.get("/v1/changes", headers={"Accept": "application/json"})
    assert [each["seq"] for each in present.json()["changes"]] == seqs
    assert present.headers["cache-control"] == "private, no-cache", "it is of now"
    named = await client.get(f"/v1/changes?after=0&until={seqs[2]}&id=a")
    assert named.headers["cache-control"] == "private, no-cache", "another object may have the name"


async def test_a_span_ends_after_so_many_events_and_says_where(
    node: HttpNode, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aetherscale.debugger.moves.MAX_CHANGES", 4)
    await make(client, "a", "b", "c")
    head, after, seen = (await node.memory.events())[-1].seq, 0, []
    while after < head:
        found = (await client.get(f"/v1/changes?after={after}&until={head}")).json()
        assert after < found["until"] <= after + 4
        seen += [each["seq"] for each in found["changes"]]
        after = found["until"]
    assert seen == await objects_seqs(node)


@pytest.mark.parametrize(
    "query", ["after=2&until=1", "until=999999", "until=x", "after=x&until=1", "until=1&command=x"]
)
async def test_a_span_that_is_none_is_refused(client: httpx.AsyncClient, query: str) -> None:
    await make(client, "a")
    assert (await client.get(f"/v1/changes?{query}")).status_code == 400


async def test_a_reader_that_knows_more_than_the_log_is_told_of_the_gap(
    node: HttpNode, client: httpx.AsyncClient
) -> None:
    await make(client, "a")
    head = (await node.memory.events())[-1].seq
    async with event_stream(client, "/v1/changes", Last_Event_ID="9999") as stream, node.tcp() as other:
        gap = await stream.next()
        assert (gap["event"], int(gap["id"])) == ("gap", head)
        assert json.loads(gap["data"]) == {"asked": 9999, "after": head, "epoch": "epoch1"}
        await make(other, "b")
        assert (await told(stream, 1))[0]["seq"] > head


async def test_a_stream_says_that_it_is_alive_and_counts_as_a_reader(
    node: HttpNode, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(events, "MAX_CALLERS_STREAMS", 1)
    async with event_stream(client, "/v1/changes") as stream, node.unix() as other:
        for _ in range(3):
            assert await stream.next() == {"": ""}
        assert (await other.get("/v1/events")).status_code == 503
        assert (await other.get("/v1/changes")).status_code == 503


async def test_many_readers_hear_the_same(node: HttpNode, client: httpx.AsyncClient) -> None:
    async def read(stream: Events) -> list[int]:
        return [each["seq"] for each in await told(stream, 4)]

    async with (
        event_stream(client, "/v1/changes?after=0") as first,
        event_stream(client, "/v1/changes?after=0") as second,
        node.unix() as other,
    ):
        await make(other, "a", "b")
        both = await asyncio.gather(read(first), read(second))
        assert list(both) == [await objects_seqs(node)] * 2
