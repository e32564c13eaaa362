"""The contract, from clients that are not ours: the `nats` program and the NATS packages for Node.js.

`just conformance` fetches both and runs this; it is no part of `just test`, since users' machines need neither.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import RunningNode

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WAIT_S = 120.0
NATS = os.environ.get("AETHERSCALE_NATS_CLI", "nats")


async def start_node(directory: Path) -> RunningNode:
    """A node with simulated machines and a base image `my-image`, which is all that its messages are about."""
    node = RunningNode(directory / "state", directory / "cache", "--simulated")
    disk = directory / "disk.raw"
    disk.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1024 * 1024 - 512))
    await node.start()
    imported = await node.task("images", "import-image", source=str(disk), name="my-image")
    assert imported["type"] == "result", imported
    return node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[RunningNode]:
    running = await start_node(tmp_path)
    yield running
    await running.close()


async def run(*command: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "setpriv",
        "--pdeathsig",
        "KILL",
        *command,
        stdout=PIPE,
        stderr=PIPE,
        cwd=HERE,
        env={**os.environ, **environment},
    )
    try:
        async with asyncio.timeout(WAIT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{' '.join(command)}\n{out.decode()}\n{err.decode()}"
    return out.decode()


async def javascript(node: RunningNode, *arguments: str) -> Any:
    """What a program for Node.js says of a node."""
    return json.loads(await run("node", "client.mjs", str(node.state_dir / "nats.json"), *arguments))


async def nats(node: RunningNode, *arguments: str) -> str:
    """The `nats` program, with the node's nats.json as its context."""
    contexts = node.state_dir.parent / "config" / "nats" / "context"
    contexts.mkdir(parents=True, exist_ok=True)
    shutil.copy(node.state_dir / "nats.json", contexts / "aether.json")
    return await run(NATS, "--context", "aether", *arguments, XDG_CONFIG_HOME=str(contexts.parents[1]))


def readme_block(after: str, containing: str) -> str:
    """The first block of commands of README's section `after` that has a word."""
    section = (ROOT / "README.md").read_text().partition(f"\n## {after}\n")[2].partition("\n## ")[0]
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return next(block for block in blocks if containing in block)


async def test_what_readme_says_works_as_printed(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """In a clean shell, with a guest whose start takes longer than `nats` waits by itself."""
    assert pytestconfig.cache is not None
    node = RunningNode(tmp_path / "state", pytestconfig.cache.mkdir("debian"))
    try:
        await node.start()
        built = await node.task("images", "build-image", recipe="tiny")
        assert built["type"] == "result", built
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "nats").symlink_to(shutil.which(NATS) or NATS)
        (programs / "aetherscale").symlink_to(Path(sys.prefix) / "bin" / "aetherscale")
        clean = {
            "PATH": f"{programs}:/usr/bin:/bin", "XDG_CONFIG_HOME": str(tmp_path),
            "AETHERSCALE_STATE_DIR": str(node.state_dir),
        }  # fmt: skip
        commands = readme_block("From any language", "nats req")
        out = await run("env", "-i", *(f"{name}={value}" for name, value in clean.items()), "bash", "-ec", commands)
        chunks = streamed(out[out.index("{") :])
        assert milestones(chunks) == ["allocating", "starting", "result"]
        assert (chunks[-1]["vm"]["name"], chunks[-1]["vm"]["phase"]) == ("web", "ready")
        assert (await node.vm("web"))["phase"] == "ready"
    finally:
        await node.close()


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def streamed(text: str) -> list[dict[str, Any]]:
    """The chunks of a reply as the `nats` program prints them; the empty message that ends it is its `nil body`."""
    chunks, end, rest = text.partition("nil body")
    assert end, text
    assert not rest.strip()
    return json_lines(chunks)


def milestones(chunks: list[dict[str, Any]]) -> list[str]:
    """What every caller may rely on seeing, in its order; other steps may come between."""
    words = [chunk.get("status", chunk["type"]) for chunk in chunks]
    return [word for word in words if word in ("allocating", "starting", "result", "error")]


FIRST_VERSION = {
    "component": "computing", "task": "create-vm", "response-channel": "unique-channel-123456789",
    "options": {"image": "my-image", "name": "first"},
}  # fmt: skip


async def test_node_js_sees_the_first_versions_message_through(node: RunningNode) -> None:
    chunks = await javascript(node, "first-version", "unique-channel-123456789", json.dumps(FIRST_VERSION))
    assert milestones(chunks) == ["allocating", "starting", "result"]
    assert chunks[-1]["vm"]["name"] == "first"


async def test_node_js_gets_a_streamed_reply_that_ends(node: RunningNode) -> None:
    chunks = await javascript(
        node, "ask", "aether.v1.default.cmd.compute.create-vm", json.dumps({"image": "my-image", "name": "web"})
    )
    assert milestones(chunks) == ["allocating", "starting", "result"]
    assert {chunk["node"] for chunk in chunks} == {node.name}
    [error] = await javascript(node, "ask", "aether.v1.default.cmd.compute.create-vm", '{"image": 7}')
    assert (error["type"], error["error"], error["details"]["field"]) == ("error", "bad-request", "image")


async def test_node_js_reads_every_event_as_the_log_has_it(node: RunningNode) -> None:
    for name in ("one", "two"):
        created = await node.task("compute", "create-vm", image="my-image", name=name)
        assert created["type"] == "result", created
        await node.task("compute", "stop-vm", vm_id=name, kill=True)
    status, out, err = await node.cli("events", "list", "--json")
    assert status == 0, err
    logged = json.loads(out)
    found = await javascript(node, "events", f"AETHER_EVT_{node.name}", str(len(logged)))
    assert [message["seq"] for message in found] == list(range(1, len(logged) + 1))
    for message, entry in zip(found, logged, strict=True):
        event = message["event"]
        assert message["id"] == event["id"]
        assert event["id"].endswith(f".{entry['seq']}")
        assert event["type"] == f"io.aetherscale.{entry['type']}"
        assert (int(event["sequence"]), event["streamversion"]) == (entry["seq"], entry["version"])
        assert (event["subject"], event["time"]) == (entry["stream"], entry["time"])
        assert (event["actor"], event["commandid"]) == (entry["actor"], entry["command-id"])
        assert (event["correlationid"], event.get("causationid")) == (entry["correlation-id"], entry["causation-id"])
        assert event["data"] == entry["data"]


async def test_node_js_finds_the_components_as_services(node: RunningNode) -> None:
    await node.task("compute", "create-vm", image="my-image", name="web")
    found = await javascript(node, "services")
    names = [answer["name"] for answer in found["ping"]]
    assert {"aether-compute", "aether-images"} <= set(names)
    compute = next(answer for answer in found["info"] if answer["name"] == "aether-compute")
    assert compute["description"]
    assert "aether.v1.*.cmd.compute.create-vm" in {endpoint["subject"] for endpoint in compute["endpoints"]}
    [stats] = found["stats"]
    create = next(endpoint for endpoint in stats["endpoints"] if endpoint["name"] == "create-vm")
    assert (create["num_requests"], create["num_errors"]) == (1, 0)


async def test_the_nats_program_gets_a_streamed_reply_that_ends(node: RunningNode) -> None:
    out = await nats(
        node, "req", "--raw", "--wait-for-empty", "--reply-timeout=60s", "aether.v1.default.cmd.compute.create-vm",
        '{"image": "my-image", "name": "web"}',
    )  # fmt: skip
    assert milestones(streamed(out)) == ["allocating", "starting", "result"]


async def test_the_nats_program_asking_twice_with_one_key_makes_one_machine(node: RunningNode) -> None:
    request = ("req", "--raw", "--wait-for-empty", "--reply-timeout=60s", "-H", "Nats-Msg-Id:order-66",
               "aether.v1.default.cmd.compute.create-vm", '{"image": "my-image", "name": "web"}')  # fmt: skip
    first, second = streamed(await nats(node, *request)), streamed(await nats(node, *request))
    assert first[-1]["type"] == second[-1]["type"] == "result"
    assert first[-1]["vm-id"] == second[-1]["vm-id"]
    assert len(await node.vms()) == 1


async def test_the_nats_program_lists_the_components_as_services(node: RunningNode) -> None:
    out = await nats(node, "micro", "ls")
    assert "aether-compute" in out
    assert "aether-images" in out
    assert "create-vm" in await nats(node, "micro", "info", "aether-compute")
    assert "create-vm" in await nats(node, "micro", "stats", "aether-compute")


async def test_the_nats_program_publishes_without_waiting_for_an_answer(node: RunningNode) -> None:
    client = await node.client()
    events = await client.subscribe("aether.v1.default.evt.*.vm.*.*")
    await client.flush()
    await nats(node, "pub", "aether.v1.default.cmd.compute.create-vm", '{"image": "my-image", "name": "silent"}')
    await events.next_msg(WAIT_S)
    view = await node.until_vm("silent", observed="running")
    assert view["name"] == "silent"


async def test_the_nats_program_sees_the_stream_of_events_and_the_heartbeat(node: RunningNode) -> None:
    state = json.loads(await nats(node, "stream", "info", f"AETHER_EVT_{node.name}", "--json"))["state"]
    assert (state["first_seq"], state["messages"]) == (1, state["last_seq"])
    [beat] = json_lines(await nats(node, "sub", f"aether.v1.sys.hb.{node.name}", "--count=1", "--raw"))
    assert beat["node"] == node.name
    assert beat["seq"] == state["last_seq"]
