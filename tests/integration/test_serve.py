"""`serve` and its surroundings: a broker with little room or none at all, a host with a new name."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import nats
import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import good, simulated_node, told
from tests.support.eventually import asked_until
from tests.support.nats_server import NatsServer
from tests.support.node import PATIENCE_S, ROOT, RunningNode

pytestmark = pytest.mark.integration

MIB = 1024**2


async def said(node: RunningNode, text: str) -> str:
    """The first line in which the node says this."""
    found: list[str] = []

    async def has_said_it() -> bool:
        found[:] = [line for line in node.output if text in line]
        return bool(found)

    await asked_until(has_said_it)
    return found[0]


async def small_server(directory: Path) -> NatsServer:
    """A broker whose JetStream has 100 MiB."""
    store = directory / "store"
    server = NatsServer(store, jetstream={"store_dir": str(store), "max_file_store": 100 * MIB})
    await server.start()
    return server


async def fitted(server: NatsServer, max_bytes: int) -> None:
    """Wait until the copy of the log is there with an event in it, and may take so much."""
    client = await nats.connect(server.endpoint.url)

    async def is_fitted() -> bool:
        try:
            info = await client.jetstream().stream_info("AETHER_EVT_host1")
        except nats.js.errors.NotFoundError:
            return False
        return info.state.messages > 0 and info.config.max_bytes == max_bytes

    await asked_until(is_fitted)
    await client.close()


async def test_a_broker_with_little_room_is_told_of_with_the_setting_and_used_by_it(
    make_node: MakeNode, tmp_path: Path
) -> None:
    server = await small_server(tmp_path)
    node = make_node("--simulated", "--nats", server.endpoint.url)
    await node.start()
    line = await said(node, "events wait in the log")
    assert "the stream asks for 1024 MiB" in line
    assert "--stream-max-bytes" in line
    await node.stop()
    for size_mib in (64, 32):
        smaller = make_node("--simulated", "--nats", server.endpoint.url, "--stream-max-bytes", f"{size_mib}M")
        await smaller.start()
        if size_mib == 64:
            answer = await smaller.task("images", "build-image", recipe="tiny", name="x")
            assert answer["type"] in ("result", "error")
        # A stream that is there is fitted to the setting.
        await fitted(server, size_mib * MIB)
        await smaller.stop()
    await server.kill()


async def test_a_node_without_its_broker_says_that_it_takes_no_commands_yet(
    make_node: MakeNode, tmp_path: Path
) -> None:
    server = NatsServer(tmp_path / "store")
    node = make_node("--simulated", "--nats", server.endpoint.url)
    await node.start()
    ready = await said(node, "ready")
    assert ready.startswith("ready: node host1 takes commands as soon as its NATS server is there")
    assert "cannot be reached yet; the node keeps trying" in await said(node, "nats ")
    await server.start()

    async def takes_commands() -> bool:
        return (await node.cli("vm", "list", "--nats", server.endpoint.url))[0] == 0

    await asked_until(takes_commands)
    await node.stop()
    await server.kill()


async def test_a_node_on_a_renamed_host_goes_on_under_the_name_of_its_log(make_node: MakeNode, tmp_path: Path) -> None:
    node = await simulated_node(make_node, tmp_path)
    await node.stop()
    unnamed = {name: value for name, value in node.environment.items() if name != "AETHERSCALE_NODE"}
    command = (sys.executable, "-m", "aetherscale")
    assert os.uname().nodename != node.name
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *command, "serve", "--simulated"),
        stdout=PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=unnamed,
        cwd=ROOT,
    )
    assert process.stdout is not None
    lines = b""
    async with asyncio.timeout(PATIENCE_S):
        while b"ready: node" not in lines:
            line = await process.stdout.readline()
            assert line, lines.decode()
            lines += line
    assert f"ready: node {node.name} takes commands".encode() in lines
    assert [image["node"] for image in await told(node, "image", "list")] == [node.name]
    doctor = await asyncio.create_subprocess_exec(*command, "doctor", stdout=PIPE, env=unnamed, cwd=ROOT)
    found, _ = await asyncio.wait_for(doctor.communicate(), PATIENCE_S)
    assert "error    log" not in found.decode()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    status, _, err = await node.cli("serve", "--simulated", "--node", "other")
    assert (status, "serve with --node host1" in err) == (1, True)
    assert await good(node, "log", "info")


async def test_a_node_may_open_as_many_files_as_the_host_lets_it(make_node: MakeNode) -> None:
    node = make_node("--simulated")
    node.within = ("prlimit", "--nofile=256:3000", "--")
    await node.start()
    limits = Path(f"/proc/{node.pid}/limits").read_text()
    (files,) = (line.split() for line in limits.splitlines() if line.startswith("Max open files"))
    assert files[3:5] == ["3000", "3000"]
