"""Events as they happen: none left out, none twice, whatever a reader does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from aetherscale.gateways.http import connection, events
from tests.support.http_node import PATIENCE_S, Events, HttpNode, event_stream, until


async def make(client: httpx.AsyncClient, *names: str) -> None:
    for name in names:
        assert (await client.post("/v1/networks?wait=30", json={"name": name})).status_code == 201


async def seqs(node: HttpNode) -> list[int]:
    return [each.seq for each in await node.memory.events()]


async def test_what_happens_is_told_as_on_jetstream_with_its_position(
    node: HttpNode, client: httpx.AsyncClient
) -> None:
    await make(client, "before")
    async with event_stream(client, "/v1/events") as stream, node.tcp() as other:
        await make(other, "lab")
        event = await stream.named("NetworkRequested")
        told: dict[str, Any] = json.loads(event["data"])
        assert told["specversion"] == "1.0"
        assert told["type"] == "io.aetherscale.NetworkRequested"
        assert told["data"]["spec"]["name"] == "lab"
        assert int(told["sequence"]) == int(event["id"]) > 3


async def test_a_reader_goes_on_where_it_ended_without_gap_or_double(node: HttpNode, client: httpx.AsyncClient) -> None:
    await make(client, "a", "b")
    async with event_stream(client, "/v1/events?after=0") as stream:
        seen = [int((await stream.next())["id"]) for _ in range(3)]
    await make(client, "c")
    wanted = await seqs(node)
    async with event_stream(client, "/v1/events?after=1", Last_Event_ID=str(seen[-1])) as stream:
        seen += [int((await stream.next())["id"]) for _ in range(len(wanted) - 3)]
        await make(client, "d")
        wanted = await seqs(node)
        seen += [int((await stream.next())["id"]) for _ in range(len(wanted) - len(seen))]
    assert seen == wanted


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("kind=network", {"NetworkRequested", "NetworkUp"}),
        ("type=NetworkUp,GroupRequested", {"NetworkUp", "GroupRequested"}),
        ("type=NetworkUp&type=GroupRequested", {"NetworkUp", "GroupRequested"}),
        ("kind=group", {"GroupRequested", "GroupApplied"}),
        ("id=lab", {"NetworkRequested", "NetworkUp"}),
        ("kind=network&type=NetworkUp", {"NetworkUp"}),
        ("command=the-key", {"GroupRequested", "NameClaimed"}),
        ("actor=aether:network", {"NetworkUp"}),
    ],
)
async def test_a_filter_leaves_out_what_does_not_fit(
    node: HttpNode, client: httpx.AsyncClient, query: str, expected: set[str]
) -> None:
    await make(client, "lab")
    await client.post("/v1/firewall/groups?wait=30", json={"name": "g"}, headers={"Idempotency-Key": "the-key"})
    last = (await seqs(node))[-1]
    async with event_stream(client, f"/v1/events?after=0&{query}") as stream, node.tcp() as other:
        seen = set()
        # The end is marked by an event that fits every filter of an actor or kind that is asked for.
        await make(other, "end")
        async with asyncio.timeout(PATIENCE_S):
            while True:
                waiting = asyncio.ensure_future(stream.next())
                done, _ = await asyncio.wait({waiting}, timeout=0.3)
                if not done:
                    waiting.cancel()
                    await asyncio.gather(waiting, return_exceptions=True)
                    break
                event = waiting.result()
                if int(event["id"]) > last:
                    break
                seen.add(event["event"])
    assert seen == expected


async def test_a_filter_by_a_name_that_there_is_not_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/events?id=none")).status_code == 404
    assert (await client.get("/v1/events?id=none&kind=vm")).json()["field"] == "vm-id"


async def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/events?kind=vm,nope")
    assert (answer.status_code, answer.json()["field"]) == (400, "kind")
    assert answer.json()["detail"] == "query: there is no kind 'nope'"
    assert answer.json()["hint"] == "known: claim, group, image, network, vm"


async def test_a_stream_says_that_it_is_alive(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.02)
    async with event_stream(client, "/v1/events") as stream:
        for _ in range(3):
            assert await stream.next() == {"": ""}


async def test_a_reader_that_knows_more_than_the_log_is_told_of_the_gap(
    node: HttpNode, client: httpx.AsyncClient
) -> None:
    await make(client, "a")
    head = (await seqs(node))[-1]
    async with event_stream(client, "/v1/events", Last_Event_ID="9999") as stream, node.tcp() as other:
        gap = await stream.next()
        assert (gap["event"], int(gap["id"])) == ("gap", head)
        assert json.loads(gap["data"]) == {"asked": 9999, "after": head, "epoch": "epoch1"}
        await make(other, "b")
        assert int((await stream.next())["id"]) == head + 1


async def test_readers_are_bounded_for_each_caller_and_in_all(
    node: HttpNode, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_CALLERS_STREAMS", 1)
    async with event_stream(client, "/v1/events"), node.unix() as other:
        full = await other.get("/v1/events")
        assert (full.status_code, full.json()["retryable"]) == (503, True)
        monkeypatch.setattr(events, "MAX_CALLERS_STREAMS", 9)
        monkeypatch.setattr(events, "MAX_STREAMS", 1)
        assert (await other.get("/v1/events")).status_code == 503
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with node.unix() as other, other.stream("GET", "/v1/events") as answer:
                if answer.status_code == 200:
                    break


async def test_a_reader_that_stops_costs_only_itself_and_misses_nothing(
    node: HttpNode, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WRITE_S", 0.5)
    _, writer = await asyncio.open_unix_connection(str(node.socket), limit=1)
    writer.write(b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: bool(node.door._connections))
    [stopped] = node.door._connections
    seen: list[int] = []

    async def read(stream: Events, last: int) -> None:
        while last not in seen:
            seen.append(int((await stream.next())["id"]))

    async with event_stream(client, "/v1/events?after=0") as stream, node.tcp() as other:
        for number in range(150):
            await make(other, f"n{number}")
            await read(stream, (await seqs(node))[-1])
        await until(lambda: stopped not in node.door._connections)
    assert seen == await seqs(node)
    writer.transport.abort()
    async with node.unix() as again, event_stream(again, "/v1/events", Last_Event_ID="0") as stream:
        assert [int((await stream.next())["id"]) for _ in seen] == seen


async def test_what_is_another_tenants_is_told_to_nobody_else(node: HttpNode, client: httpx.AsyncClient) -> None:
    final = await node.memory.final("network", "create-network", {"name": "theirs"}, tenant="other")
    assert final["type"] == "result"
    await make(client, "ours")
    async with event_stream(client, "/v1/events?after=0&type=NetworkRequested") as stream:
        assert json.loads((await stream.next())["data"])["data"]["spec"]["name"] == "ours"


async def test_an_event_that_is_too_large_comes_without_its_data(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 100)
    await make(client, "lab")
    async with event_stream(client, "/v1/events?after=0&type=NetworkRequested") as stream:
        told = json.loads((await stream.next())["data"])
    assert told["dataomitted"] is True
    assert "data" not in told


async def test_streams_end_with_the_node(node: HttpNode, client: httpx.AsyncClient) -> None:
    async with event_stream(client, "/v1/events") as stream:
        await node.close_door()
        async with asyncio.timeout(PATIENCE_S):
            assert await stream.ended()
