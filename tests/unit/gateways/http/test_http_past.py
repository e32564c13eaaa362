"""The past over HTTP: each moment as it was, what is immutable and what is not, and what is no moment."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from aetherscale.kernel.times import to_rfc3339
from tests.support.http_node import HttpNode, vm

FIXED = "private, max-age=31536000, immutable"
NOT_FIXED = "private, no-cache"


async def grown(node: HttpNode, client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """A past with a VM that was stopped and deleted, and a network; the views of all moments at which one was seen."""
    await node.image()
    seen = []

    async def see() -> None:
        # What a request began may go on for a moment: a moment is one at which nothing happened meanwhile.
        while True:
            before = (await node.memory.events())[-1].seq
            views = {kind: (await client.get(path)).json()["items"] for kind, path in PATHS.items()}
            if (await node.memory.events())[-1].seq == before:
                seen.append({"position": before, "state": views})
                return

    await see()
    await vm(client)
    await see()
    await client.post("/v1/networks?wait=30", json={"name": "lab"})
    await client.post("/v1/vms/web/actions?wait=60", json={"action": "stop"})
    await see()
    await client.delete("/v1/vms/web?wait=60")
    await see()
    return seen


PATHS = {"vm": "/v1/vms", "network": "/v1/networks", "group": "/v1/firewall/groups", "image": "/v1/images"}


async def test_each_moment_is_what_the_lists_were_then(node: HttpNode, client: httpx.AsyncClient) -> None:
    for seen in await grown(node, client):
        answer = await client.get(f"/v1/state?at={seen['position']}")
        found = answer.json()
        assert found["state"] == seen["state"]
        assert (found["position"], found["node"]) == (seen["position"], "host1")
        assert found["counts"] == {kind: len(views) for kind, views in seen["state"].items()}
        assert answer.headers["cache-control"] == FIXED
        tag = answer.headers["etag"]
        again = await client.get(f"/v1/state?at={seen['position']}", headers={"If-None-Match": tag})
        assert again.status_code == 304
        for view in seen["state"]["vm"]:
            for reference in (view["id"], view["name"]):
                assert (await client.get(f"/v1/vms/{reference}?at={seen['position']}")).json() == view


async def test_a_state_may_be_of_some_kinds_and_of_so_many_each(node: HttpNode, client: httpx.AsyncClient) -> None:
    for name in ("b", "a", "c"):
        await client.post("/v1/networks?wait=30", json={"name": name})
    found = (await client.get("/v1/state?kind=network,vm&limit=2")).json()
    assert [view["name"] for view in found["state"]["network"]] == ["a", "b"]
    assert found["counts"] == {"network": 3, "vm": 0}
    assert found["state"].keys() == {"network", "vm"}


async def test_before_the_first_event_there_was_nothing(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/state?at=0")).json()
    assert (found["position"], found["time"]) == (0, "")
    assert set(found["counts"].values()) == {0}


async def test_what_is_of_now_is_not_kept_and_a_time_is_once_something_came_after_it(
    node: HttpNode, client: httpx.AsyncClient
) -> None:
    await client.post("/v1/networks?wait=30", json={"name": "a"})
    at = to_rfc3339((await node.memory.events())[-1].time_us)
    for path in ("/v1/state", f"/v1/state?at={at}", "/v1/state?at=5m"):
        assert (await client.get(path)).headers["cache-control"] == NOT_FIXED, path
    await client.post("/v1/networks?wait=30", json={"name": "b"})
    then = await client.get("/v1/state", params={"at": at})
    assert [view["name"] for view in then.json()["state"]["network"]] == ["a"]
    assert then.headers["cache-control"] == FIXED, "all that comes is later"
    assert (await client.get("/v1/state?at=5m")).headers["cache-control"] == NOT_FIXED, "the words mean another moment"


async def test_a_difference_is_that_of_the_command_line(node: HttpNode, client: httpx.AsyncClient) -> None:
    first, ready, stopped, gone = [seen["position"] for seen in await grown(node, client)]
    found = (await client.get(f"/v1/diff?from={first}&to={ready}")).json()
    [added] = [change for change in found["changes"] if change["kind"] == "vm"]
    assert (added["change"], added["name"]) == ("added", "web")
    assert (found["before"], found["after"]) == (first, ready)
    found = (await client.get(f"/v1/diff?from={ready}&to={stopped}")).json()
    [changed] = [change for change in found["changes"] if change["kind"] == "vm"]
    phase = next(field for field in changed["fields"] if field["field"] == "phase")
    assert (phase["before"], phase["after"]) == ("ready", "stopped")
    answer = await client.get(f"/v1/diff?from={stopped}&to={gone}")
    assert answer.headers["cache-control"] == FIXED
    assert (await client.get(f"/v1/diff?from={stopped}")).headers["cache-control"] == NOT_FIXED
    assert (await client.get(f"/v1/diff?from={ready}&to={ready}")).json()["changes"] == []


async def test_why_is_told_of_any_moment_and_of_what_is_deleted(node: HttpNode, client: httpx.AsyncClient) -> None:
    seen = await grown(node, client)
    ready = (await client.get(f"/v1/vms/web/why?at={seen[1]['position']}")).json()
    assert (ready["view"]["phase"], ready["position"]) == ("ready", seen[1]["position"])
    assert ready["chapters"][0]["sentences"][0]["text"].startswith("asked")
    gone = (await client.get("/v1/vms/web/why?all=1")).json()
    assert gone["view"]["phase"] == "deleted"
    assert gone["left-out"] == 0
    for path in ("/v1/networks/lab/why", "/v1/images/tiny/why"):
        assert (await client.get(path)).json()["summary"]
    assert (await client.get(f"/v1/vms/web/why?at={seen[0]['position']}")).status_code == 404


async def test_a_density_has_each_event_once_in_the_column_of_its_time(
    node: HttpNode, client: httpx.AsyncClient
) -> None:
    await grown(node, client)
    head = (await node.memory.events())[-1].seq
    objects = [each for each in await node.memory.events() if not each.stream.startswith("claim-")]
    for columns in (1, 2, 7, 240):
        found = (await client.get(f"/v1/density?columns={columns}")).json()
        assert len(found["columns"]) == columns
        assert sum(c["asked"] + c["happened"] + c["failed"] for c in found["columns"]) == len(objects)
        assert [c["after"] for c in found["columns"][1:]] == [c["until"] for c in found["columns"][:-1]]
        assert (found["columns"][0]["after"], found["columns"][-1]["until"], found["exact"]) == (0, head, True)
        asked = sum(not each.actor.startswith("aether:") for each in objects)
        assert sum(c["asked"] for c in found["columns"]) == asked
    part = await client.get(f"/v1/density?from={head - 3}&to={head}&columns=3")
    assert part.headers["cache-control"] == FIXED


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/state?at=999999", "at"),
        ("/v1/state?at=", "at"),
        ("/v1/state?at=soon", "at"),
        ("/v1/state?kind=nope", "kind"),
        ("/v1/state?limit=0", "limit"),
        ("/v1/state?limit=10001", "limit"),
        ("/v1/state?nope=1", "nope"),
        ("/v1/diff", "from"),
        ("/v1/diff?from=2&to=1", "from"),
        ("/v1/diff?from=1&to=soon", "to"),
        ("/v1/density?columns=0", "columns"),
        ("/v1/density?columns=1001", "columns"),
        ("/v1/vms/web?at=soon", "at"),
        ("/v1/vms/web?when=1", "when"),
        ("/v1/vms/web/why?at=1&at=2", "at"),
    ],
)
async def test_what_is_no_moment_is_refused_by_its_name(client: httpx.AsyncClient, path: str, field: str) -> None:
    await client.post("/v1/networks?wait=30", json={"name": "a"})
    answer = await client.get(path)
    told: dict[str, Any] = json.loads(answer.content)
    assert (answer.status_code, told.get("field")) == (400, field), told
