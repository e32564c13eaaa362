"""The node's own nats-server: found by clients, kept through restarts, gone with its node."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from aetherscale.bus import embedded, leftover, processes
from aetherscale.bus.embedded import EmbeddedServer, EmbeddedServerError, find_binary
from aetherscale.bus.endpoint import Endpoint, read_endpoint
from aetherscale.bus.nats import NatsBus
from aetherscale.bus.serverconf import Limits
from tests.support.eventually import ended

pytestmark = pytest.mark.integration

WAIT_S = 20.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    embedded = EmbeddedServer(tmp_path, "n1")
    await embedded.start()
    yield embedded
    await embedded.close()


async def connect(endpoint: Endpoint) -> NatsBus:
    bus = NatsBus(lambda: endpoint, name="test", clock=lambda: time.time_ns() // 1000)
    await bus.start(WAIT_S)
    return bus


async def ask(bus: NatsBus, subject: str, **fields: object) -> dict[str, object]:
    async for chunk in bus.request(subject, msgspec.json.encode(fields), timeout_s=WAIT_S):
        answer: dict[str, object] = msgspec.json.decode(chunk)
        return answer
    raise AssertionError("an empty answer")


async def test_clients_find_it_by_a_file_that_only_its_owner_can_read(server: EmbeddedServer, tmp_path: Path) -> None:
    endpoint = read_endpoint(tmp_path)
    assert endpoint == server.endpoint
    assert msgspec.json.decode((tmp_path / "nats.json").read_bytes()).keys() == {
        "url", "user", "password", "description",
    }  # fmt: skip
    for private in ("nats.json", "nats/server.conf", "nats/process.json"):
        assert (tmp_path / private).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "nats").stat().st_mode & 0o777 == 0o700
    bus = await connect(endpoint)
    assert bus.disconnected_since_us is None
    await bus.close()


async def test_who_has_not_the_password_does_not_get_in(server: EmbeddedServer) -> None:
    stranger = NatsBus(lambda: Endpoint(server.endpoint.url, "operator", "guess"), name="x", clock=lambda: 1)
    await stranger.start(0.3)
    assert stranger.disconnected_since_us is not None
    await stranger.close()


async def test_its_password_is_in_no_argument_of_a_process(server: EmbeddedServer) -> None:
    assert server.pid is not None
    assert server.endpoint.password not in Path(f"/proc/{server.pid}/cmdline").read_text()


async def test_a_restart_keeps_port_password_and_store(tmp_path: Path) -> None:
    first = EmbeddedServer(tmp_path, "n1")
    await first.start()
    bus = await connect(first.endpoint)
    await ask(bus, "$JS.API.STREAM.CREATE.S", name="S", subjects=["s"])
    await ask(bus, "s", hello="world")
    await bus.close()
    await first.close()
    second = EmbeddedServer(tmp_path, "n1")
    await second.start()
    assert second.endpoint == first.endpoint
    bus = await connect(second.endpoint)
    info = await ask(bus, "$JS.API.STREAM.INFO.S")
    assert msgspec.json.encode(info["state"]).startswith(b'{"messages":1,')
    await bus.close()
    await second.close()


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Event()
    pids: list[int] = []

    async def never(self: EmbeddedServer, process: asyncio.subprocess.Process) -> bool:
        pids.append(process.pid)
        started.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    server = EmbeddedServer(tmp_path, "n1")
    with monkeypatch.context() as hung:
        hung.setattr(EmbeddedServer, "_until_ready", never)
        starting = asyncio.ensure_future(server.start())
        await started.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert not Path(f"/proc/{pids[0]}").exists(), "it was waited for"
    await server.start()
    await server.close()


async def test_a_port_that_is_taken_by_then_is_given_up_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = EmbeddedServer(tmp_path, "n1")
    await first.start()
    await first.close()
    port = int(first.endpoint.url.rpartition(":")[2])
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        second = EmbeddedServer(tmp_path, "n1")
        await second.start()
        assert second.endpoint.url != first.endpoint.url
        assert second.endpoint.password == first.endpoint.password
        assert read_endpoint(tmp_path) == second.endpoint
        assert f"port {port} of the embedded NATS is taken by another program" in caplog.text
        await second.close()


async def test_killed_it_is_back_at_once_and_so_is_the_bus(server: EmbeddedServer) -> None:
    bus = NatsBus(lambda: server.endpoint, name="test", clock=lambda: 1)
    await bus.start(WAIT_S)
    again = asyncio.Event()
    bus.on_reconnect(again.set)
    for _ in range(3):
        again.clear()
        before = server.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(WAIT_S):
            await again.wait()
        assert server.pid not in (None, before)
    await bus.close()


NODE = """
import asyncio, sys
from pathlib import Path
from aetherscale.bus.embedded import EmbeddedServer
from tests.support.eventually import ended

async def main():
    server = EmbeddedServer(Path(sys.argv[1]), "n1")
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_it_dies_with_its_node(tmp_path: Path) -> None:
    node = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", sys.executable, "-c", NODE, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert node.stdout is not None
    async with asyncio.timeout(WAIT_S):
        pid = int(await node.stdout.readline())
    assert processes.identify(pid) is not None
    node.kill()
    await node.communicate()
    await ended(pid)
    after = EmbeddedServer(tmp_path, "n1")
    await after.start()
    await after.close()


async def start_orphan(tmp_path: Path) -> asyncio.subprocess.Process:
    """A nats-server on the node's store that nobody looks after, as if its death signal had been lost."""
    first = EmbeddedServer(tmp_path, "n1")
    await first.start()
    await first.close()
    orphan = await asyncio.create_subprocess_exec(
        str(find_binary()), "-c", str(tmp_path / "nats/server.conf"), stderr=asyncio.subprocess.PIPE
    )
    assert orphan.stderr is not None
    async with asyncio.timeout(WAIT_S):
        while b"Server is ready" not in await orphan.stderr.readline():
            pass
    return orphan


async def test_one_that_outlived_its_node_is_ended_before_another_uses_its_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    orphan = await start_orphan(tmp_path)
    (tmp_path / "nats/process.json").write_bytes(msgspec.json.encode(processes.identify(orphan.pid)))
    server = EmbeddedServer(tmp_path, "n1")
    await server.start()
    async with asyncio.timeout(WAIT_S):
        await orphan.communicate()
    assert f"ended a nats-server (pid {orphan.pid}) that had outlived its node" in caplog.text
    assert "taken by another program" not in caplog.text
    await server.close()


async def test_a_stranger_who_has_the_pid_by_now_is_not_touched(tmp_path: Path) -> None:
    stranger = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", "sh", "-c", "echo ready; read _",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert stranger.stdout is not None
    await stranger.stdout.readline()
    there = processes.identify(stranger.pid)
    assert there is not None
    (tmp_path / "nats").mkdir()
    for wrong in (
        msgspec.structs.replace(there, start_ticks=there.start_ticks - 1),
        msgspec.structs.replace(there, exe="/usr/bin/nats-server"),
        msgspec.structs.replace(there, boot_id="of an earlier boot"),
    ):
        (tmp_path / "nats/process.json").write_bytes(msgspec.json.encode(wrong))
        server = EmbeddedServer(tmp_path, "n1")
        await server.start()
        await server.close()
        assert processes.identify(stranger.pid) == there
    stranger.kill()
    await stranger.communicate()


async def test_the_process_that_is_meant_is_ended_even_if_it_will_not(tmp_path: Path) -> None:
    stubborn = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", "sh", "-c", "trap '' TERM; echo ready; while :; do read _; done",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert stubborn.stdout is not None
    await stubborn.stdout.readline()
    identity = processes.identify(stubborn.pid)
    assert identity is not None
    assert await processes.end(identity, grace_s=0.1)
    await stubborn.communicate()
    assert not await processes.end(identity, grace_s=0.1)


async def test_any_state_directory_will_do(tmp_path: Path) -> None:
    odd = tmp_path / "a \"state\" 'dir' #1 $HOME {é} \\ ; end"
    server = EmbeddedServer(odd, "n1")
    await server.start()
    bus = await connect(server.endpoint)
    await ask(bus, "$JS.API.STREAM.CREATE.S", name="S", subjects=["s"])
    assert (odd / "nats/jetstream/jetstream").is_dir()
    await bus.close()
    await server.close()


async def test_damaged_files_of_its_own_are_made_anew(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats/process.json").write_text("{")
    (tmp_path / "nats/server.conf").write_text('{"port": "x"}')
    server = EmbeddedServer(tmp_path, "n1")
    await server.start()
    await server.close()


async def test_why_it_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, "n1", limits=Limits(max_payload_bytes=2**40))
    with pytest.raises(EmbeddedServerError, match=r"(?s)ended with 1 before.*max_payload.*server\.conf"):
        await server.start()


async def test_for_want_of_memory_it_says_so_and_shows_no_stacks(tmp_path: Path) -> None:
    program = tmp_path / "nats-server"
    program.write_text(f'#!/bin/sh\nulimit -v 300000\nexec {embedded.find_binary()} "$@"\n')
    program.chmod(0o755)
    server = EmbeddedServer(tmp_path, "n1", binary=program)
    with pytest.raises(
        EmbeddedServerError, match=r"ended with \d+ before it was ready: (fatal error|runtime): "
    ) as failure:
        await server.start()
    assert "ulimit -v" in str(failure.value)
    assert "\n" not in str(failure.value)


async def test_one_that_never_gets_ready_is_given_up_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "READY_TIMEOUT_S", 0.3)
    program = tmp_path / "nats-server"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    program.chmod(0o755)
    server = EmbeddedServer(tmp_path, "n1", binary=program)
    with pytest.raises(EmbeddedServerError, match="was not ready within"):
        await server.start()
    await ended(int((tmp_path / "pid").read_text()))


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, "n1", binary=tmp_path / "nats-server")
    with pytest.raises(EmbeddedServerError, match="nats-server"):
        await server.start()


async def test_its_limits_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL):
        server = EmbeddedServer(tmp_path, "n1", limits=Limits(max_file_store_bytes=4096, max_payload_bytes=2048))
        await server.start()
        bus = await connect(server.endpoint)
        assert bus.max_body_bytes == 2048
        answer = await ask(bus, "$JS.API.STREAM.CREATE.S", name="S", subjects=["s"], max_bytes=8192)
        assert "error" in answer
        await bus.close()
        await server.close()


async def test_the_server_of_a_node_that_lives_is_not_ended_and_its_record_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftover, "NODE_PATIENCE_S", 0.1)
    node = await asyncio.create_subprocess_exec("setpriv", "--pdeathsig", "KILL", "sleep", "600")
    orphan = await start_orphan(tmp_path)
    identity, parent = processes.identify(orphan.pid), processes.identify(node.pid)
    assert identity is not None
    path = tmp_path / "nats/process.json"
    on_record = leftover.Server(**msgspec.structs.asdict(identity), node=parent)
    path.write_bytes(msgspec.json.encode(on_record))
    with pytest.raises(EmbeddedServerError, match=rf"the node that runs as pid {node.pid} uses .*nats too"):
        await EmbeddedServer(tmp_path, "n1").start()
    leftover.forget(path, os.getpid())
    assert msgspec.json.decode(path.read_bytes(), type=leftover.Server) == on_record
    assert processes.identify(orphan.pid) == identity

    node.kill()
    await node.wait()
    server = EmbeddedServer(tmp_path, "n1")
    await server.start()
    await orphan.communicate()
    kept = msgspec.json.decode(path.read_bytes(), type=leftover.Server)
    assert (kept.pid, kept.node) == (server.pid, processes.identify(os.getpid()))
    await server.close()
    assert not path.exists()
