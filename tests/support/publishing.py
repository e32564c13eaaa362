"""A log, a real JetStream, and a publisher between them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale.bus import cloudevents
from aetherscale.bus.bus import BusUnavailable
from aetherscale.bus.jetstream import StoredMessage, Stream, StreamError
from aetherscale.bus.nats import NatsBus
from aetherscale.bus.streamplan import StreamState
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.memory import MemoryLog, open_memory
from aetherscale.kernel.messages import Envelope, Event, Recorded
from aetherscale.runtime.publisher import Publisher
from tests.support.eventually import Told, asked_until
from tests.support.nats_server import NatsServer

WAIT_S = 30.0
NODE, EPOCH = "n1", "0aaaaaaaaaaaaaaa"
NAME = f"AETHER_EVT_{NODE}"


class Happened(Event, frozen=True):
    number: int
    note: str = ""


class World:
    """A log, a server, a publisher between them."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.server = NatsServer(self.store)
        self.memory = MemoryLog(NODE, EPOCH)
        self.alarms = Told()
        self.bus = NatsBus(lambda: self.server.endpoint, name="node", clock=lambda: time.time_ns() // 1000)
        self.publisher: Publisher | None = None
        self._versions: dict[str, int] = {}
        self._written = 0

    async def open_log(self, memory: MemoryLog | None = None) -> None:
        if memory is not None:
            self.memory.crash()
            self.memory = memory
            self._versions = {}
        self.log = EventLog(await open_memory(self.memory), Codec([Happened]))

    async def append(self, count: int, note: str = "") -> None:
        """`count` events in streams of ten."""
        while count:
            some = min(count, 10)
            stream = f"vm-{self._written:016x}"
            events = tuple(Happened(self._written + number, note) for number in range(some))
            envelope = Envelope(None, "default", "user:x", f"c{self._written}", "r", None, 1_700_000_000_000_000)
            await self.log.append([Write(stream, 0, events)], envelope)
            self._written += some
            count -= some

    async def start(self, **options: Any) -> Publisher:
        options = {"compare_interval_s": 0.2, "ack_timeout_s": 0.5, **options}
        self.publisher = Publisher(self.log, self.bus, alarm=self.alarms.append, **options)
        self.publisher.start()
        return self.publisher

    async def stop(self) -> None:
        if self.publisher is not None:
            await self.publisher.close()
        self.publisher = None

    @property
    def stream(self) -> Stream:
        return Stream(self.bus, NAME, (f"aether.v1.*.evt.{NODE}.>",), description="", max_bytes=1 << 30)

    async def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        async for chunk in self.bus.request(f"$JS.API.{what}", msgspec.json.encode(fields), timeout_s=WAIT_S):
            answer: dict[str, Any] = msgspec.json.decode(chunk)
            assert "error" not in answer, answer
            return answer
        raise AssertionError(what)

    async def put(self, subject: str, body: bytes) -> None:
        """Publish into whatever stream has the subject, and wait until it is stored: a plain message may be late."""
        async for chunk in self.bus.request(subject, body, timeout_s=WAIT_S):
            answer: dict[str, Any] = msgspec.json.decode(chunk)
            assert "error" not in answer, answer
            return
        raise AssertionError(subject)

    async def content(self, name: str = NAME) -> list[StoredMessage]:
        stream = Stream(self.bus, name, (), description="", max_bytes=0)
        found: list[StoredMessage] = []
        while page := await stream.read(found[-1].seq + 1 if found else 1, 500):
            found += page
        return found

    async def until_equal(self) -> None:
        """Wait until the stream is the log, message for message; on the way there it may be anything, or gone."""
        wanted = [as_stored(recorded) for recorded in await self.logged()]
        found: list[StoredMessage] = []

        async def is_equal() -> bool:
            nonlocal found
            with suppress(BusUnavailable, StreamError):
                await self.state_at(len(wanted))
                found = await self.content()
            return found == wanted

        with suppress(TimeoutError):
            await asked_until(is_equal)
        assert found == wanted

    async def state_at(self, last_seq: int) -> StreamState:
        """The state of the stream once it has come so far."""
        found: StreamState | None = None

        async def has_come_so_far() -> bool:
            nonlocal found
            with suppress(BusUnavailable, StreamError):
                found = await self.stream.state()
            return found is not None and found.last_seq >= last_seq

        await asked_until(has_come_so_far)
        assert found is not None
        return found

    async def stored(self, publisher: Publisher, seq: int) -> None:
        """Wait until the broker has told the publisher that it has stored so much."""

        async def is_acknowledged() -> bool:
            with suppress(BusUnavailable, StreamError):
                await self.stream.state()
            return publisher.stored_seq >= seq

        await asked_until(is_acknowledged)

    async def logged(self) -> Sequence[Recorded]:
        return await self.log.read(0, 1_000_000)


def as_stored(recorded: Recorded) -> StoredMessage:
    return StoredMessage(
        recorded.seq,
        cloudevents.subject(recorded),
        f"{recorded.node}.{recorded.epoch}.{recorded.seq}",
        cloudevents.encode(recorded, 1_000_000),
    )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.open_log()
    await made.server.start()
    await made.bus.start(WAIT_S)
    yield made
    await made.stop()
    await made.bus.close()
    await made.server.kill()
