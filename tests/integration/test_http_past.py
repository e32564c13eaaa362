"""The past over HTTP of a real node: what it says is what the command line says, and its loop does not fold it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MakeNode
from tests.integration.test_http import unix
from tests.support.eventually import asked_until
from tests.support.http_node import event_stream
from tests.support.node import PATIENCE_S, RunningNode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


async def said(node: RunningNode, *words: str) -> Any:
    status, out, err = await node.cli(*words, "--json")
    assert status == 0, err
    return json.loads(out)


async def make(client: httpx.AsyncClient, *names: str) -> None:
    for name in names:
        assert (await client.post("/v1/networks?wait=30", json={"name": name})).status_code == 201


def historians(node: RunningNode) -> list[int]:
    """The processes that tell the past of this node."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                words = (each / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended meanwhile
                continue
            if b"aetherscale.gateways.http.historianmain" in words and str(node.state_dir).encode() in words:
                found.append(int(each.name))
    return found


@pytest.fixture
async def simulated(make_node: MakeNode) -> RunningNode:
    node = make_node("--simulated")
    await node.start()
    return node


async def test_what_it_says_is_what_the_command_line_says(simulated: RunningNode) -> None:
    node = simulated
    async with unix(node) as client:
        await make(client, "lab", "other")
        assert (await client.delete("/v1/networks/other?wait=30")).status_code == 200
        assert historians(node) == [], "nobody has asked about the past"
        head = (await client.get("/v1/state")).json()["position"]
        [pid] = historians(node)
        for at in range(head + 1):
            assert (await client.get(f"/v1/state?at={at}")).json()["state"] == await said(
                node, "replay", "--at", str(at)
            ), at
        assert (await client.get(f"/v1/diff?from=1&to={head}")).json() == await said(node, "diff", "1", str(head))
        for name in ("lab", "other"):
            why = await said(node, "why", "network", name, "--all")
            assert (await client.get(f"/v1/networks/{name}/why?all=1")).json() == why
        events = await said(node, "events", "list")
        moment = events[1]["time"]
        shown = (await client.get("/v1/state", params={"at": moment})).json()
        assert shown["state"] == await said(node, "replay", "--at", moment)
        assert shown["time"] == moment
        assert historians(node) == [pid], "one process answered all"


async def test_changes_go_on_after_a_restart_from_the_log_alone(simulated: RunningNode) -> None:
    """The simulated host loses its networks with the node, so that the second one has something to tell by itself."""
    node = simulated
    async with unix(node) as client:
        async with event_stream(client, "/v1/changes") as stream:
            await make(client, "lab")
            first = json.loads((await stream.next())["data"])
        await node.kill()
        await node.start()
    views: dict[str, dict[str, Any]] = {}
    seen = [first]
    async with unix(node) as client, unix(node) as other:
        async with event_stream(client, "/v1/changes?kind=network", Last_Event_ID=first["cursor"]) as stream:
            await make(other, "later")
            while seen[-1]["set"].get("name") != [None, "later"]:
                seen.append(json.loads((await stream.next())["data"]))
            seen.append(json.loads((await stream.next())["data"]))
        shown = {view["id"]: view for view in (await other.get("/v1/networks")).json()["items"]}
        events = await said(node, "events", "list")
    for change in seen:
        view = views.setdefault(change["id"], {})
        for name, (before, after) in change["set"].items():
            assert view.get(name) == before, (name, change)
            view[name] = after
        view["revision"] = change["revision"]
    assert views == shown
    assert [change["seq"] for change in seen] == [
        each["seq"] for each in events if each["stream"].startswith("network-")
    ]


async def test_one_that_is_killed_is_followed_by_another_one_and_none_outlives_the_node(simulated: RunningNode) -> None:
    node = simulated
    async with unix(node) as client:
        await make(client, "lab")
        before = (await client.get("/v1/state?at=2")).json()
        [pid] = historians(node)
        os.kill(pid, signal.SIGKILL)
        assert (await client.get("/v1/state?at=2")).json() == before
        [again] = historians(node)
        assert again != pid
    await node.kill()

    async def is_gone() -> bool:
        return historians(node) == []

    await asked_until(is_gone, PATIENCE_S)
