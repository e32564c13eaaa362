"""Requests on every bus: a reply comes whole and unmixed, and a request without a reply has an end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from aetherscale.bus.bus import Bus, BusUnavailable, Incoming, NoResponders
from tests.support.bus_fixtures import WAIT_S, Heard, World, collect, world

__all__ = ["world"]


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


async def test_a_request_under_way_when_the_broker_dies_fails_at_once(world: World) -> None:
    bus, heard = await world.connect(), Heard()
    await bus.listen("slow", "", heard)
    request = asyncio.create_task(collect(bus.request("slow", b"", timeout_s=600)))
    await heard.next()
    await world.down()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(BusUnavailable, match="before the reply had ended"):
            await request
