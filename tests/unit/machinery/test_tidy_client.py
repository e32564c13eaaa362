"""The client of tests ends whatever it is about, also while it connects again."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.nats_client import TidyClient

GREETING = b'INFO {"server_id": "x", "version": "2.10", "max_payload": 1000000, "headers": true}\r\n'
TURNS = 24
"""Of the loop, in which nats-py has noticed the end of its connection and is on its way to another one."""


class Broker:
    """Greets one client, answers its pings, and goes when that publishes."""

    async def open(self) -> int:
        """Serve; the port."""
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.gone = asyncio.Event()
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        while not (line := await reader.readline()).startswith(b"PUB"):
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        self._server.close()
        writer.close()
        await writer.wait_closed()
        self.gone.set()


async def no_matter(_: Exception) -> None:
    """The error is what is meant."""


@pytest.mark.parametrize("turns", range(TURNS))
async def test_it_ends_at_each_turn_of_a_lost_connection(turns: int) -> None:
    broker = Broker()
    port = await broker.open()
    client = await TidyClient.connected(f"nats://127.0.0.1:{port}", error_cb=no_matter)
    await client.publish("subject", b"body")
    for _ in range(turns):
        await asyncio.sleep(0)
    await client.end()
    assert client.is_closed
    await broker.gone.wait()


async def test_a_cancellation_of_its_caller_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = asyncio.Event()

    async def close(_: TidyClient) -> None:
        closing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(TidyClient, "close", close)
    ending = asyncio.ensure_future(TidyClient().end())
    await closing.wait()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
