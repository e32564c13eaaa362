"""Messages on every bus, the fake in memory and a real nats-server: who hears them, and what an outage does to them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from aetherscale.bus.bus import BusUnavailable, Incoming, TooLarge
from tests.support.bus_fixtures import WAIT_S, Heard, World, clock, collect, world

__all__ = ["world"]


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


async def test_a_closed_bus_has_sent_what_it_was_given(world: World) -> None:
    alice, bob, heard = await world.connect(), await world.connect(), Heard()
    await bob.listen("last.words", "", heard)
    for number in range(500):
        await alice.publish("last.words", b"%d" % number)
    await alice.close()
    assert await heard.bodies(500) == [b"%d" % number for number in range(500)]
    with pytest.raises(BusUnavailable):
        await alice.publish("last.words", b"")
