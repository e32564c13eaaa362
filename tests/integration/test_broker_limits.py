"""What happens at the bounds of a connection to a broker that hangs, and of commands: see docs/limits.md."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.msg import Msg

from aetherscale.__main__ import program
from aetherscale.bus import connection as connection_module
from aetherscale.bus import jetstream
from aetherscale.bus.bus import BusUnavailable, Incoming
from aetherscale.bus.endpoint import Endpoint, write_endpoint
from aetherscale.bus.jetstream import Stream, StreamError
from aetherscale.bus.memory import MemoryBroker
from aetherscale.bus.nats import MAX_UNSENT_BYTES, NatsBus
from aetherscale.eventstore.sqlite import connection as sqlite_connection
from aetherscale.gateways.cli import client as client_module
from aetherscale.gateways.cli.client import Client
from aetherscale.gateways.cli.failures import Failure
from aetherscale.settings import Settings
from aetherscale.setup import doctor
from tests.support.nats_server import NatsServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

PATIENCE_S = 30.0
PIECE = bytes(64 * 1024)
SOCKETS_BYTES = 32 * 1024 * 1024
"""More than the kernel keeps of what one socket sent and another did not read."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    running = NatsServer(tmp_path / "store")
    await running.start()
    yield running
    with suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGCONT)
    await running.kill()


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[NatsBus]:
    connected = NatsBus(lambda: server.endpoint, name="test", clock=lambda: 0)
    await connected.start(PATIENCE_S)
    yield connected
    await connected.close()


async def test_what_a_broker_does_not_take_makes_its_publisher_wait(
    server: NatsServer, bus: NatsBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "ROUNDTRIP_TIMEOUT_S", PATIENCE_S)
    os.kill(server.pid, signal.SIGSTOP)
    sent_bytes, most_bytes = 0, 4 * (SOCKETS_BYTES + MAX_UNSENT_BYTES)

    async def publish() -> None:
        nonlocal sent_bytes
        while sent_bytes < most_bytes:
            await bus.publish("x", PIECE)
            sent_bytes += len(PIECE)

    publishing = asyncio.ensure_future(publish())
    before = -1
    while before != sent_bytes:
        before = sent_bytes
        await asyncio.wait({publishing}, timeout=0.2)
    assert sent_bytes < SOCKETS_BYTES + MAX_UNSENT_BYTES
    os.kill(server.pid, signal.SIGCONT)
    await asyncio.wait_for(publishing, PATIENCE_S)


async def test_a_broker_that_does_not_answer_is_given_up(
    server: NatsServer, bus: NatsBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "ROUNDTRIP_TIMEOUT_S", 0.1)
    os.kill(server.pid, signal.SIGSTOP)
    back = asyncio.Event()
    bus.on_reconnect(back.set)
    subscribing = asyncio.ensure_future(bus.listen("x", "", lambda incoming: None))
    while bus.disconnected_since_us is None:
        await asyncio.wait({subscribing}, timeout=0.05)
    os.kill(server.pid, signal.SIGCONT)
    await asyncio.wait_for(back.wait(), PATIENCE_S)
    with suppress(BusUnavailable):
        await subscribing


async def test_a_server_that_says_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 0.1)
    came: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    silent = await asyncio.start_server(lambda reader, writer: came.put_nowait(writer), "127.0.0.1")
    port = silent.sockets[0].getsockname()[1]
    bus = NatsBus(lambda: Endpoint(f"nats://127.0.0.1:{port}"), name="test", clock=lambda: 0)
    await bus.start(0.01)
    writers = [await asyncio.wait_for(came.get(), PATIENCE_S) for _ in range(2)]
    assert bus.disconnected_since_us is not None
    await bus.close()
    for writer in writers:
        writer.close()
    silent.close()
    await silent.wait_closed()


async def test_a_copy_that_does_not_get_on_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "COPY_TIMEOUT_S", 0.1)
    broker = MemoryBroker()
    serving, asking = broker.connect(lambda: 0), broker.connect(lambda: 0)

    def answer(incoming: Incoming) -> None:
        last = 7 if incoming.subject.endswith(".S") else 3
        state = {"config": {}, "state": {"first_seq": 1, "last_seq": last, "messages": last, "bytes": last}}
        for body in (msgspec.json.encode(state), b""):
            answering.append(asyncio.ensure_future(serving.publish(incoming.reply, body)))

    answering: list[asyncio.Future[Any]] = []
    await serving.listen("$JS.API.>", "", answer)
    with pytest.raises(StreamError, match="it has not got everything within"):
        await Stream(asking, "S", (), description="", max_bytes=1).set_aside("S_OLD")
    await asyncio.gather(*answering)


def test_a_file_that_stays_locked_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_connection, "BUSY_S", 0.05)
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        ours = sqlite_connection.connect(path, "rw")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            ours.execute("SELECT * FROM t").fetchall()
        ours.close()


class TestCommands:
    """A node that begins to answer and falls silent, and one that does not come back."""

    async def test_a_node_that_falls_silent_is_told(
        self, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client_module, "SILENCE_S", 0.1)
        write_endpoint(tmp_path, server.endpoint)
        peer = await nats.connect(server.endpoint.url)

        async def begin(message: Msg) -> None:
            await peer.publish(message.reply, b'{"type":"status","status":"allocating","vm-id":"0123456789abcdef"}')

        await peer.subscribe("aether.v1.default.cmd.compute.create-vm", cb=begin)
        await peer.flush()
        with pytest.raises(Failure, match="fell silent"):
            await asyncio.to_thread(self._create, tmp_path)
        await peer.close()

    async def test_a_node_that_does_not_come_back_is_not_waited_for_for_ever(
        self, server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client_module, "BACK_S", 0.1)
        write_endpoint(tmp_path, server.endpoint)
        peer = await nats.connect(server.endpoint.url, allow_reconnect=False)
        begun = asyncio.Event()

        async def begin(message: Msg) -> None:
            await peer.publish(message.reply, b'{"type":"status","status":"allocating","vm-id":"0123456789abcdef"}')
            await peer.flush()
            begun.set()

        await peer.subscribe("aether.v1.default.cmd.compute.create-vm", cb=begin)
        await peer.flush()
        asking = asyncio.ensure_future(asyncio.to_thread(self._create, tmp_path))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        await server.kill()
        with pytest.raises(Failure, match=r"no node answers|cannot be reached|lost"):
            await asyncio.wait_for(asking, PATIENCE_S)
        # nats-py leaves the socket of a connection that was lost to the garbage collector, which complains.
        if peer._transport is not None:
            peer._transport.close()  # type: ignore[no-untyped-call]
        await server.start()

    def _create(self, state_dir: Path) -> None:
        with closing(Client(Settings(state_dir, "host1"), program())) as client:
            list(client.ask("compute", "create-vm", {}, timeout_s=PATIENCE_S, command=True))


def test_the_doctor_wants_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._room(tmp_path).status in ("ok", "warning")
    monkeypatch.setattr(doctor, "LEAST_FREE_MIB", 1 << 40)
    assert doctor._room(tmp_path).status == "error"
