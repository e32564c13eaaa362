"""What every bus promises, on the fake in memory and on a real nats-server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

import pytest

from aetherscale.bus.bus import Bus, BusUnavailable, Incoming, NoResponders, TooLarge
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


async def test_a_message_arrives_with_its_subject_body_headers_and_reply(world: World) -> None:
    alice, bob, heard = await world.connect(), await world.connect(), Heard()
    await bob.listen("greet.bob", "", heard)
    await alice.publish("greet.bob", b"\x00hello\r\n", {"Nats-Msg-Id": "k 1", "X": "ü"}, reply="back.here")
    assert await heard.next() == Incoming("greet.bob", b"\x00hello\r\n", {"Nats-Msg-Id": "k 1", "X": "ü"}, "back.here")
    await alice.publish("greet.bob", b"")
    assert await heard.next() == Incoming("greet.bob", b"", {}, "")


@pytest.mark.parametrize(
    ("pattern", "heard_on", "unheard_on"),
    [
        ("a.*.c", ["a.b.c", "a.x-1.c"], ["a.c", "a.b.b.c", "a.b.c.d", "b.b.c"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a"]),
        ("a.b", ["a.b"], ["a", "a.b.c", "A.b"]),
        (">", ["a", "a.b.c"], []),
        ("*", ["a"], ["a.b"]),
    ],
)
async def test_a_star_stands_for_one_token_and_an_arrow_for_the_rest(
    world: World, pattern: str, heard_on: list[str], unheard_on: list[str]
) -> None:
    bus, heard, everything = await world.connect(), Heard(), Heard()
    await bus.listen(pattern, "", heard)
    await bus.listen(">", "", everything)
    for subject in [*unheard_on, *heard_on]:
        await bus.publish(subject, subject.encode())
    assert await heard.bodies(len(heard_on)) == [subject.encode() for subject in heard_on]
    await everything.bodies(len(heard_on) + len(unheard_on))
    assert heard.is_empty


async def test_messages_are_handled_in_the_order_in_which_they_were_sent(world: World) -> None:
    alice, bob, heard = await world.connect(), await world.connect(), Heard()
    await bob.listen("many", "", heard)
    for number in range(2000):
        await alice.publish("many", b"%d" % number)
    assert await heard.bodies(2000) == [b"%d" % number for number in range(2000)]


async def test_one_member_of_a_queue_group_gets_a_message_and_each_group_gets_it(world: World) -> None:
    alice, members = await world.connect(), [await world.connect() for _ in range(3)]
    group, other, lone = Heard(), Heard(), Heard()
    for member in members:
        await member.listen("work", "group", group)
        await member.listen("work", "other", other)
    await members[0].listen("work", "", lone)
    for number in range(300):
        await alice.publish("work", b"%d" % number)
    everything = sorted(b"%d" % number for number in range(300))
    for heard in (group, other, lone):
        assert sorted(await heard.bodies(300)) == everything
        assert heard.is_empty


async def test_work_is_shared_by_the_members_of_a_queue_group(world: World) -> None:
    alice, bob, carol = await world.connect(), await world.connect(), await world.connect()
    by_bob, by_carol = Heard(), Heard()
    await bob.listen("work", "group", by_bob)
    await carol.listen("work", "group", by_carol)
    for _ in range(200):
        await alice.publish("work", b"")
    await by_bob.next()
    await by_carol.next()


async def test_who_unsubscribed_hears_no_more(world: World) -> None:
    bus, gone, there = await world.connect(), Heard(), Heard()
    subscription = await bus.listen("news", "", gone)
    await bus.listen("news", "", there)
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    await bus.publish("news", b"1")
    await there.next()
    assert gone.is_empty


@pytest.mark.our_mistake
async def test_a_handler_that_fails_is_logged_and_harms_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    bus, heard = await world.connect(), Heard()

    def fail_once(incoming: Incoming) -> None:
        if incoming.body == b"poison":
            raise RuntimeError("deliberate")
        heard(incoming)

    await bus.listen("feed", "", fail_once)
    with caplog.at_level(logging.ERROR):
        await bus.publish("feed", b"poison")
        await bus.publish("feed", b"food")
        assert await heard.bodies(1) == [b"food"]
    assert "deliberate" in caplog.text


async def answer(bus: Bus, subject: str, *chunks: bytes) -> None:
    """Listen on a subject and answer each request with these chunks."""
    running = set[asyncio.Task[None]]()

    async def reply(to: str) -> None:
        for chunk in chunks:
            await bus.publish(to, chunk, {"Aether-Node": "n"})
        await bus.publish(to, b"")

    def take(incoming: Incoming) -> None:
        running.add(asyncio.create_task(reply(incoming.reply)))

    await bus.listen(subject, "q", take)


async def test_a_request_gets_all_chunks_up_to_the_empty_message(world: World) -> None:
    alice, bob = await world.connect(), await world.connect()
    await answer(bob, "list", b"1", b"2", b"3")
    assert await collect(alice.request("list", b"", timeout_s=WAIT_S)) == [b"1", b"2", b"3"]


async def test_many_requests_at_once_each_get_their_own_chunks(world: World) -> None:
    alice, bob = await world.connect(), await world.connect()
    for number in range(50):
        await answer(bob, f"echo.{number}", b"%d" % number)
    replies = await asyncio.gather(
        *(collect(alice.request(f"echo.{number}", b"", timeout_s=WAIT_S)) for number in range(50))
    )
    assert replies == [[b"%d" % number] for number in range(50)]


async def test_an_empty_chunk_with_headers_does_not_end_a_reply(world: World) -> None:
    bus = await world.connect()
    running = set[asyncio.Task[None]]()

    async def reply(to: str) -> None:
        await bus.publish(to, b"", {"Note": "more to come"})
        await bus.publish(to, b"last")
        await bus.publish(to, b"")

    await bus.listen("odd", "", lambda incoming: running.add(asyncio.create_task(reply(incoming.reply))))
    assert await collect(bus.request("odd", b"", timeout_s=WAIT_S)) == [b"", b"last"]


async def test_a_request_that_nobody_hears_says_so(world: World) -> None:
    bus = await world.connect()
    with pytest.raises(NoResponders, match=r"nobody\.home"):
        await collect(bus.request("nobody.home", b"", timeout_s=WAIT_S))


async def test_a_reply_that_stays_silent_times_out(world: World) -> None:
    bus, heard = await world.connect(), Heard()
    await bus.listen("silent", "", heard)
    with pytest.raises(TimeoutError):
        await collect(bus.request("silent", b"", timeout_s=0.02))


async def test_a_reply_that_is_left_early_leaves_nothing_behind(world: World) -> None:
    alice, bob = await world.connect(), await world.connect()
    await answer(bob, "list", b"1", b"2", b"3")
    async with aclosing(alice.request("list", b"", timeout_s=WAIT_S)) as chunks:  # type: ignore[type-var]
        assert await anext(chunks) == b"1"
    assert await collect(alice.request("list", b"", timeout_s=WAIT_S)) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("subject", ["", "a b", "a..b", ".a", "a.", "a\nb", "a\x00b", "a.*", "a.>", "*"])
async def test_a_malformed_subject_is_not_published_to(world: World, subject: str) -> None:
    bus = await world.connect()
    with pytest.raises(ValueError, match="subject"):
        await bus.publish(subject, b"")
    with pytest.raises(ValueError, match="subject"):
        await bus.publish("fine", b"", reply=subject or " ")


@pytest.mark.parametrize("subject", ["", "a b", "a..b", "a.>.b", "a\r\nPING", "a\x00"])
async def test_a_malformed_subject_is_not_listened_to(world: World, subject: str) -> None:
    bus = await world.connect()
    with pytest.raises(ValueError, match="subject"):
        await bus.listen(subject, "", Heard())


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a:": "c"}, {"": "c"}, {"a": "b\r\nc"}, {"a": "\x00"}])
async def test_a_malformed_header_is_not_sent(world: World, headers: dict[str, str]) -> None:
    bus = await world.connect()
    with pytest.raises(ValueError, match="header"):
        await bus.publish("fine", b"", headers)


async def test_a_message_of_the_largest_size_arrives_and_a_larger_one_is_refused(world: World) -> None:
    bus, heard = await world.connect(), Heard()
    await bus.listen("large", "", heard)
    await bus.publish("large", b"x" * bus.max_body_bytes)
    assert len((await heard.next()).body) == bus.max_body_bytes
    for body, headers in [(b"x" * (bus.max_body_bytes + 1), None), (b"x" * bus.max_body_bytes, {"A": "b"})]:
        with pytest.raises(TooLarge):
            await bus.publish("large", body, headers)
    await bus.publish("large", b"still here")
    assert await heard.bodies(1) == [b"still here"]


async def test_while_the_broker_is_down_nothing_is_taken_and_nothing_is_sent_late(world: World) -> None:
    bus, heard = await world.connect(), Heard()
    await bus.listen("news", "", heard)
    before = clock()
    await world.down()
    since = bus.disconnected_since_us
    assert since is not None
    assert before <= since <= clock()
    with pytest.raises(BusUnavailable, match="since 20"):
        await bus.publish("news", b"late")
    with pytest.raises(BusUnavailable):
        await collect(bus.request("news", b"", timeout_s=WAIT_S))
    await world.up()
    await bus.publish("news", b"fresh")
    assert await heard.bodies(1) == [b"fresh"]


async def test_after_an_outage_everybody_listens_to_what_they_listened_to(world: World) -> None:
    bus, kept, dropped, new = await world.connect(), Heard(), Heard(), Heard()
    back = asyncio.Event()
    bus.on_reconnect(back.set)
    await bus.listen("kept", "q", kept)
    subscription = await bus.listen("dropped", "", dropped)
    await world.down()
    await subscription.unsubscribe()
    await bus.listen("new", "", new)
    await world.up()
    async with asyncio.timeout(WAIT_S):
        await back.wait()
    for subject in ("dropped", "kept", "new"):
        await bus.publish(subject, b"")
    await kept.next()
    await new.next()
    assert dropped.is_empty


async def test_a_request_under_way_when_the_broker_dies_fails_at_once(world: World) -> None:
    bus, heard = await world.connect(), Heard()
    await bus.listen("slow", "", heard)
    request = asyncio.create_task(collect(bus.request("slow", b"", timeout_s=600)))
    await heard.next()
    await world.down()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(BusUnavailable, match="before the reply had ended"):
            await request


async def test_a_closed_bus_has_sent_what_it_was_given(world: World) -> None:
    alice, bob, heard = await world.connect(), await world.connect(), Heard()
    await bob.listen("last.words", "", heard)
    for number in range(500):
        await alice.publish("last.words", b"%d" % number)
    await alice.close()
    assert await heard.bodies(500) == [b"%d" % number for number in range(500)]
    with pytest.raises(BusUnavailable):
        await alice.publish("last.words", b"")
