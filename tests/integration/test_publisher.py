"""The copy of the log in a real JetStream: whatever happens to it, it ends up equal to the log."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale.actors.publisher import Publisher
from aetherscale.bus import cloudevents
from aetherscale.bus.bus import BusUnavailable
from aetherscale.bus.jetstream import StoredMessage, Stream, StreamError
from aetherscale.bus.nats import NatsBus
from aetherscale.bus.streamplan import StreamState
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.memory import MemoryLog, open_memory
from aetherscale.kernel.messages import Envelope, Event, Recorded
from tests.support.eventually import Told, asked_until, logged
from tests.support.nats_server import NatsServer

pytestmark = pytest.mark.integration

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


async def test_everything_in_the_log_gets_to_its_position_in_the_stream(world: World) -> None:
    await world.append(1000)
    publisher = await world.start()
    await world.until_equal()
    await world.append(3)
    await world.until_equal()
    assert publisher.stored_seq == 1003
    assert world.alarms == []


async def test_a_restart_of_the_publisher_continues_where_the_stream_ends(world: World) -> None:
    await world.start()
    for _ in range(3):
        await world.append(100)
        await world.until_equal()
        await world.stop()
        await world.append(50)
        await world.start()
    await world.until_equal()
    created = (await world.ask(f"STREAM.INFO.{NAME}"))["created"]
    await world.stop()
    await world.start()
    await world.append(1)
    await world.until_equal()
    assert (await world.ask(f"STREAM.INFO.{NAME}"))["created"] == created
    assert world.alarms == []


async def test_a_broker_that_is_killed_again_and_again_loses_and_doubles_nothing(world: World) -> None:
    publisher = await world.start()
    written = asyncio.Event()

    async def write() -> None:
        while not written.is_set():
            await world.append(50)
            await world.stream.state()  # so that the writer is not done before the publisher has begun

    async def write_on() -> None:
        while not written.is_set():
            with suppress(BusUnavailable, TimeoutError):
                await write()

    writing = asyncio.create_task(write_on())
    for _ in range(4):
        await world.stored(publisher, publisher.stored_seq + 200)
        await world.server.kill()
        await world.server.start()
    written.set()
    await writing
    await world.until_equal()


async def test_what_a_broker_missed_while_it_was_away_is_published_once_when_it_is_back(world: World) -> None:
    await world.append(10)
    await world.start()
    await world.until_equal()
    await world.server.kill()
    await world.append(5000)
    await world.server.start()
    await world.until_equal()
    assert world.alarms == []


async def test_a_stream_that_somebody_deleted_is_published_again(world: World) -> None:
    await world.append(500)
    await world.start(compare_interval_s=600)
    await world.until_equal()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    await world.bus.listen(f"aether.v1.*.evt.{NODE}.>", "", heard.put_nowait)
    await world.ask(f"STREAM.DELETE.{NAME}")
    await world.append(1)
    await world.until_equal()
    headers = {int(incoming.headers["Nats-Msg-Id"].rpartition(".")[2]): incoming.headers for incoming in drain(heard)}
    assert headers[1]["Aether-Replayed"] == "1"
    assert "is gone" in world.alarms[0]


def drain(queue: asyncio.Queue[Any]) -> list[Any]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


async def test_a_stream_that_somebody_purged_is_published_again(world: World) -> None:
    await world.append(500)
    await world.start()
    await world.until_equal()
    await world.ask(f"STREAM.PURGE.{NAME}", keep=20)
    await world.until_equal()
    await world.ask(f"STREAM.PURGE.{NAME}")
    await world.until_equal()


async def test_a_store_that_was_wiped_is_filled_again(world: World) -> None:
    await world.append(500)
    await world.start()
    await world.until_equal()
    await world.server.kill()
    shutil.rmtree(world.store)
    await world.server.start()
    await world.until_equal()


async def test_a_message_that_somebody_else_published_there_does_not_stay(world: World) -> None:
    await world.append(100)
    await world.start()
    await world.until_equal()
    await world.bus.publish(f"aether.v1.default.evt.{NODE}.vm.x.spam", b"{}")
    await world.append(5)
    await world.until_equal()
    await world.bus.publish(f"aether.v1.default.evt.{NODE}.vm.x.spam", b"{}")
    await world.alarms.until(lambda alarms: len(alarms) == 2)
    await world.until_equal()
    assert "is not event 106 of this node" in world.alarms[1]


async def forge(world: World, seq: int, **changes: Any) -> None:
    """Make the stream anew as it was, but for one message: lost (None) or another."""
    messages = await world.content()
    info = await world.ask(f"STREAM.INFO.{NAME}")
    config = {**info["config"], "deny_delete": False}
    await world.ask(f"STREAM.DELETE.{NAME}")
    await world.ask(f"STREAM.CREATE.{NAME}", **config)
    for message in messages:
        if message.seq == seq:
            message = msgspec.structs.replace(message, **changes)
        headers = {"Nats-Msg-Id": message.message_id}
        await world.bus.publish(message.subject, message.body, headers)
    await world.state_at(len(messages))


async def test_a_hole_that_the_counters_know_of_is_filled(world: World) -> None:
    await world.append(100)
    await world.start()
    await world.until_equal()
    await world.stop()
    await forge(world, 0)
    await world.ask(f"STREAM.MSG.DELETE.{NAME}", seq=50)
    await world.start()
    await world.until_equal()
    assert "1 of its events are missing" in world.alarms[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"body": b'{"specversion":"1.0","data":{"number":666}}'},
        {"message_id": "n1.0aaaaaaaaaaaaaaa.5000"},
        {"subject": f"aether.v1.default.evt.{NODE}.vm.x.other"},
    ],
)
async def test_a_message_that_was_silently_altered_is_found_by_reading_through(
    world: World, changes: dict[str, Any]
) -> None:
    await world.append(1200)
    await world.start()
    await world.until_equal()
    await world.stop()
    await forge(world, 777, **changes)
    publisher = await world.start(compare_interval_s=600)
    await world.stored(publisher, 1200)
    assert "event 777" in await publisher.scrub()
    await world.alarms.until(bool)
    await world.until_equal()
    assert await publisher.scrub() == ""


@pytest.mark.parametrize("index_lost", [False, True])
async def test_a_bit_that_flipped_on_the_brokers_disk_is_found_and_mended(world: World, index_lost: bool) -> None:
    await world.append(1000)
    publisher = await world.start(compare_interval_s=600, scrub_interval_s=2.4)
    await world.until_equal()
    await world.server.stop()
    [block] = list(world.store.rglob("*.blk"))
    content = bytearray(block.read_bytes())
    content[content.index(b"n1.0aaaaaaaaaaaaaaa.500") + 60] ^= 1
    block.write_bytes(content)
    if index_lost:
        [index] = list(world.store.rglob("index.db"))
        index.unlink()
    await world.server.start()
    if not index_lost:
        # The broker still counts what it cannot read any more. Without its index it drops everything from there on.
        await world.alarms.until(bool)
        assert world.alarms[0].endswith("event 500 is missing from it")
    await world.until_equal()
    assert await publisher.scrub() == ""


async def test_a_sound_stream_is_scrubbed_without_a_finding(world: World) -> None:
    await world.append(1234)
    publisher = await world.start()
    await world.until_equal()
    assert await publisher.scrub() == ""
    assert world.alarms == []


async def test_the_events_of_an_earlier_log_are_kept_under_another_name(world: World) -> None:
    await world.append(300)
    await world.start()
    await world.until_equal()
    before = await world.content()
    await world.stop()
    await world.open_log(MemoryLog(NODE, "0bbbbbbbbbbbbbbb"))
    await world.append(20)
    await world.start()
    await world.until_equal()
    assert await world.content(f"{NAME}_{EPOCH}_300") == before
    await world.append(10)
    await world.until_equal()
    assert len(await world.content(f"{NAME}_{EPOCH}_300")) == 300
    assert "another log of this node" in world.alarms[0]


async def test_a_log_that_has_lost_acknowledged_events_is_not_published_over_them(world: World) -> None:
    await world.append(300)
    await world.start()
    await world.until_equal()
    before = await world.content()
    await world.stop()
    await world.open_log(MemoryLog(NODE, EPOCH))
    await world.append(20)
    publisher = await world.start()
    await world.alarms.until(bool)
    assert publisher.halted
    await world.append(20)
    assert await world.content() == before
    assert "only up to 20" in world.alarms[0]
    assert len(world.alarms) == 1


async def test_an_event_too_large_for_the_broker_keeps_its_place_without_its_data(world: World) -> None:
    await world.append(5)
    await world.append(1, note="\x01" * 200_000)
    await world.append(5)
    await world.start()
    logged = await world.logged()
    await world.state_at(11)
    sixth = (await world.content())[5]
    assert msgspec.json.decode(sixth.body)["id"] == f"{NODE}.{EPOCH}.6"
    assert msgspec.json.decode(sixth.body)["dataomitted"] is True
    assert [message.seq for message in await world.content()] == [recorded.seq for recorded in logged]


async def test_the_oldest_events_leave_a_stream_that_has_no_more_room(world: World) -> None:
    limit = 4 * 1024 * 1024
    publisher = await world.start(max_bytes=limit)
    await world.append(12_000)
    state = await world.state_at(12_000)
    assert state.first_seq > 1
    assert state.size_bytes <= limit
    await world.stop()
    publisher = await world.start(max_bytes=limit)
    await world.append(10)
    await world.stored(publisher, 12_010)
    assert await publisher.scrub() == ""
    assert world.alarms == []


async def test_a_broker_without_jetstream_is_named_and_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.server = NatsServer(tmp_path / "store", jetstream=False)
    await world.open_log()
    await world.append(3)
    await world.server.start()
    await world.bus.start(WAIT_S)
    with logged("aetherscale.actors.publisher") as said:
        await world.start()
        await said.until(lambda lines: any("this broker has no JetStream" in line for line in lines))
    await world.stop()
    await world.bus.close()
    await world.server.kill()
