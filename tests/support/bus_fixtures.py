"""Fixtures and helpers of the contract of buses: a broker in memory, and a real nats-server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from aetherscale.bus.bus import Bus, Incoming
from aetherscale.bus.memory import MemoryBroker
from aetherscale.bus.nats import NatsBus
from tests.support.eventually import logged
from tests.support.nats_server import NatsServer

WAIT_S = 10.0


def clock() -> int:
    return time.time_ns() // 1000


class World(Protocol):
    """A broker, and connections to it."""

    async def connect(self) -> Bus: ...
    async def down(self) -> None: ...
    async def up(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self._broker = MemoryBroker()

    async def connect(self) -> Bus:
        return self._broker.connect(clock)

    async def down(self) -> None:
        self._broker.down()

    async def up(self) -> None:
        self._broker.up()


class NatsWorld:
    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._buses: list[NatsBus] = []

    async def connect(self) -> Bus:
        bus = NatsBus(lambda: self._server.endpoint, name="test", clock=clock)
        self._buses.append(bus)
        await bus.start(WAIT_S)
        return bus

    async def down(self) -> None:
        with logged("aetherscale.bus.nats") as said:
            await self._server.kill()
            await said.until(lambda _: all(bus.disconnected_since_us is not None for bus in self._buses))

    async def up(self) -> None:
        with logged("aetherscale.bus.nats") as said:
            await self._server.start()
            await said.until(lambda _: all(bus.disconnected_since_us is None for bus in self._buses))

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()
        await self._server.kill()


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    server = NatsServer(tmp_path / "store")
    await server.start()
    real = NatsWorld(server)
    yield real
    await real.close()


class Heard:
    """What a handler was given, and a way to wait for the next."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Incoming] = asyncio.Queue()

    def __call__(self, incoming: Incoming) -> None:
        self._queue.put_nowait(incoming)

    async def next(self) -> Incoming:
        async with asyncio.timeout(WAIT_S):
            return await self._queue.get()

    async def bodies(self, count: int) -> list[bytes]:
        return [(await self.next()).body for _ in range(count)]

    @property
    def is_empty(self) -> bool:
        return self._queue.empty()


async def collect(chunks: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in chunks]
