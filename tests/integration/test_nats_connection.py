"""A bus and its bytes: the order in which a server is told things, and what a server sends at once."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from nats.errors import Error as NatsError

from aetherscale.bus.bus import Incoming
from aetherscale.bus.connection import Connection
from aetherscale.bus.endpoint import Endpoint
from aetherscale.bus.nats import NatsBus
from tests.support.nats_client import TidyClient

INFO = b'INFO {"server_id":"S","version":"2.15.1","headers":true,"max_payload":1048576,"proto":1}\r\n'
WAIT_S = 10.0
READ_BYTES = 32 * 1024
"""What nats-py takes at a time of what has come."""
BURST_BYTES = 5 * READ_BYTES
"""Less than asyncio takes from a socket at a time."""


class Listening:
    """Stands where a nats-server would, answers every ping, and keeps what it was told, line by line.

    `burst` is what it sends with its first answer.
    """

    def __init__(self, burst: bytes = b"") -> None:
        self.lines: list[bytes] = []
        self.open = 0
        """Connections."""
        self.ended = asyncio.Event()
        self._burst = burst

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        writer.write(INFO)
        with suppress(ConnectionError):
            while line := await reader.readline():
                self.lines.append(line)
                if line == b"PING\r\n":
                    writer.write(b"PONG\r\n" + self._burst)
                    self._burst = b""
            writer.close()
            await writer.wait_closed()
        self.open -= 1
        self.ended.set()


@asynccontextmanager
async def bus_of(listening: Listening) -> AsyncIterator[NatsBus]:
    """A bus, not started, for the server on a port of its own."""
    server = await asyncio.start_server(listening.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bus = NatsBus(lambda: Endpoint(f"nats://127.0.0.1:{port}"), name="test", clock=lambda: time.time_ns() // 1000)
    yield bus
    await bus.close()
    await listening.ended.wait()
    server.close()
    await server.wait_closed()


async def test_who_has_listened_is_heard_of_by_the_server_and_not_only_asked_whether_it_lives() -> None:
    listening = Listening()
    async with bus_of(listening) as bus:
        await bus.listen("before.the.connection", "", print)
        await bus.start(WAIT_S)
        assert listening.lines[-2:] == [b"SUB before.the.connection 1\r\n", b"PING\r\n"]
        await bus.listen("after.it", "", print)
        assert listening.lines[-2:] == [b"SUB after.it 2\r\n", b"PING\r\n"]


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_a_bus_that_is_closed_while_it_connects_hangs_up(turns: int) -> None:
    listening = Listening()
    server = await asyncio.start_server(listening.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bus = NatsBus(lambda: Endpoint(f"nats://127.0.0.1:{port}"), name="test", clock=lambda: time.time_ns() // 1000)
    starting = asyncio.ensure_future(bus.start(WAIT_S))
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await bus.close()
    server.close()
    async with asyncio.timeout(WAIT_S):
        while listening.open:  # noqa: ASYNC110 - of several connections
            await asyncio.sleep(0.001)


async def test_what_a_message_leads_to_does_not_wait_for_the_end_of_a_burst() -> None:
    message = b"MSG a 1 64\r\n" + bytes(64) + b"\r\n"
    count = BURST_BYTES // len(message)
    heard = 0
    first, last = asyncio.Event(), asyncio.Event()

    def hear(incoming: Incoming) -> None:
        nonlocal heard
        heard += 1
        first.set()
        if heard == count:
            last.set()

    async with bus_of(Listening(message * count)) as bus:
        await bus.listen("a", "", hear)
        starting = asyncio.ensure_future(bus.start(WAIT_S))
        await first.wait()
        assert heard <= READ_BYTES // len(message) + 1
        await last.wait()
        await starting


async def test_many_who_listen_at_once_share_the_question_whether_they_are_heard() -> None:
    listening = Listening()
    async with bus_of(listening) as bus:
        await bus.start(WAIT_S)
        asked = listening.lines.count(b"PING\r\n")
        await asyncio.gather(*(bus.listen(f"a.{number}", "", lambda incoming: None) for number in range(100)))
        assert [line.split()[0] for line in listening.lines[-101:]] == [b"SUB"] * 100 + [b"PING"]
        assert listening.lines.count(b"PING\r\n") == asked + 1


async def test_the_beginning_of_a_long_answer_is_sent_while_its_end_is_made() -> None:
    listening = Listening()
    async with bus_of(listening) as bus:
        await bus.start(WAIT_S)
        for _ in range(64):
            await bus.publish("a.b", b"x" * 8192)
        assert any(line.startswith(b"PUB a.b ") for line in listening.lines)


async def test_what_is_sent_on_a_lost_connection_leaves_nothing_watched_that_the_next_one_would_get() -> None:
    listening = Listening()
    server = await asyncio.start_server(listening.serve, "127.0.0.1", 0)
    endpoint = Endpoint(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    lost = Connection(lambda sid, incoming: None)
    await lost.open([endpoint.url], endpoint, "test")
    transport = lost._transport
    assert transport is not None
    socket = vars(transport)["_io_writer"].transport
    descriptor = socket.get_extra_info("socket").fileno()
    watched = vars(asyncio.get_running_loop())["_selector"].get_map()
    assert descriptor in watched
    socket.abort()
    transport.writelines([b"PUB a 1\r\nx\r\n"])  # as nats-py's flusher does, before it has heard of the loss
    await lost.end()
    assert descriptor not in watched
    await listening.ended.wait()
    server.close()
    await server.wait_closed()


async def test_a_ping_that_no_task_waits_for_leaves_no_traceback_when_the_connection_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listening = Listening()
    server = await asyncio.start_server(listening.serve, "127.0.0.1", 0)
    endpoint = Endpoint(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    connection = Connection(lambda sid, incoming: None)
    await connection.open([endpoint.url], endpoint, "test")
    connection._pongs.append(asyncio.get_running_loop().create_future())
    await connection.end()
    connection._pongs.clear()
    gc.collect()
    assert "never retrieved" not in caplog.text
    await listening.ended.wait()
    server.close()
    await server.wait_closed()


async def test_a_client_of_the_tests_leaves_no_connection_open_that_was_lost_before_the_greeting() -> None:
    begun, ended = 0, asyncio.Semaphore(0)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        begun += 1
        writer.write_eof()  # as a nats-server that is killed while a client connects
        await reader.read()
        ended.release()
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(NatsError):
        await TidyClient.connected(f"nats://127.0.0.1:{port}", allow_reconnect=False)
    assert begun > 0
    for _ in range(begun):
        await ended.acquire()
    server.close()
    await server.wait_closed()


async def lose_with_more_to_send() -> None:
    """A connection is lost while some of what it was to send waits, and nats-py hears of it."""
    listening = Listening()
    server = await asyncio.start_server(listening.serve, "127.0.0.1", 0)
    endpoint = Endpoint(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    connection = Connection(lambda sid, incoming: None)
    await connection.open([endpoint.url], endpoint, "test")
    vars(connection._transport)["_io_writer"].transport.abort()
    connection._pending.append(b"PING\r\n")
    connection._pending_data_size += 6
    await asyncio.sleep(0)
    await connection._process_op_err(ConnectionResetError())
    assert connection.lost.is_set()
    await connection.end()
    await listening.ended.wait()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_what_waits_to_be_sent_when_a_connection_is_lost_makes_no_traceback(name: str) -> None:
    loop = pytest.importorskip(name)
    with asyncio.Runner(loop_factory=loop.new_event_loop) as runner:
        runner.run(lose_with_more_to_send())
