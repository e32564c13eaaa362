"""The order in which a bus tells a server things, as a server sees it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from aetherscale.bus.connection import Connection
from aetherscale.bus.endpoint import Endpoint
from aetherscale.bus.nats import NatsBus

INFO = b'INFO {"server_id":"S","version":"2.15.1","headers":true,"max_payload":1048576,"proto":1}\r\n'
WAIT_S = 10.0


class Listening:
    """Stands where a nats-server would, answers every ping, and keeps what it was told, line by line."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        with suppress(ConnectionError):
            while line := await reader.readline():
                self.lines.append(line)
                if line == b"PING\r\n":
                    writer.write(b"PONG\r\n")
        writer.close()


async def test_who_has_listened_is_heard_of_by_the_server_and_not_only_asked_whether_it_lives() -> None:
    listening = Listening()
    server = await asyncio.start_server(listening.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bus = NatsBus(lambda: Endpoint(f"nats://127.0.0.1:{port}"), name="test", clock=lambda: time.time_ns() // 1000)
    await bus.listen("before.the.connection", "", print)
    await bus.start(WAIT_S)
    assert listening.lines[-2:] == [b"SUB before.the.connection 1\r\n", b"PING\r\n"]
    await bus.listen("after.it", "", print)
    assert listening.lines[-2:] == [b"SUB after.it 2\r\n", b"PING\r\n"]
    await bus.close()
    server.close()
    await server.wait_closed()


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
    server.close()
    await server.wait_closed()
