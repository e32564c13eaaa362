"""What every event store promises to those who follow it, and when it is closed and opened again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.store import Accepted, AlreadyAccepted, Closed, Locked, StoredEvent, WrongVersion
from aetherscale.eventstore.tail import MOST_EVENTS
from tests.support.event_logs import EPOCH, NODE, LogWorld, append_of, digest_of, new, read_all, take, write
from tests.support.store_fixtures import WAIT_S, store, world

__all__ = ["store", "world"]


# --- those who follow ------------------------------------------------------------------------------------------------


async def test_a_follower_gets_the_past_and_then_what_comes(store: LogStore) -> None:
    for version in range(3):
        await store.append(append_of(write("vm-1", version)))

    async with asyncio.timeout(WAIT_S), aclosing(store.subscribe(1)) as pages:
        assert [event.seq for event in await take(pages, 2)] == [2, 3]
        coming = asyncio.ensure_future(take(pages, 2))
        await store.append(append_of(write("vm-1", 3), write("vm-2", 0)))
        assert [event.seq for event in await coming] == [4, 5]


async def test_a_follower_of_the_future_waits_for_it(store: LogStore) -> None:
    async with asyncio.timeout(WAIT_S), aclosing(store.subscribe(2)) as pages:
        coming = asyncio.ensure_future(take(pages, 1))
        for version in range(3):
            await store.append(append_of(write("vm-1", version)))
        assert [event.seq for event in await coming] == [3]


async def test_followers_get_everything_in_order_however_slow_they_are(store: LogStore) -> None:
    """Longer than what memory keeps, so that a slow follower has to go back to the log and then catch up."""
    count = MOST_EVENTS + 500
    first_page = asyncio.Event()
    go_on = asyncio.Event()

    async def slow() -> list[StoredEvent]:
        events: list[StoredEvent] = []
        async with aclosing(store.subscribe(0)) as pages:
            while len(events) < count:
                events.extend(await anext(pages))
                first_page.set()
                await go_on.wait()
        return events

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(slow())
        await store.append(append_of(write("vm-0", 0)))
        await first_page.wait()
        for version in range(1, count, 100):
            batch = [append_of(write("vm-0", v)) for v in range(version, min(version + 100, count))]
            await asyncio.gather(*map(store.append, batch))
        go_on.set()

    assert [event.seq for event in following.result()] == list(range(1, count + 1))
    assert following.result() == await read_all(store)


async def test_a_follower_ends_with_the_store(world: LogWorld) -> None:
    store = await world.open()
    async with asyncio.timeout(WAIT_S), aclosing(store.subscribe(0)) as pages:
        waiting = asyncio.ensure_future(anext(pages))
        await asyncio.wait({waiting}, timeout=0)
        await store.close()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_listeners_are_told_of_a_commit_before_those_who_wait_for_it(store: LogStore) -> None:
    told: list[int] = []
    store.on_commit(lambda events: told.extend(event.seq for event in events))

    async def append(number: int) -> bool:
        appended = await store.append(append_of(write(f"vm-{number}", 0)))
        return appended[0].seq in told

    assert all(await asyncio.gather(*map(append, range(30))))
    assert told == list(range(1, 31))


# --- waiting, closing, opening again ---------------------------------------------------------------------------------


async def test_a_cancelled_append_is_there_whole_or_not_at_all(store: LogStore) -> None:
    async with asyncio.timeout(WAIT_S):
        for number in range(30):
            task = asyncio.ensure_future(store.append(append_of(write(f"vm-{number}", 0, new(), new()))))
            await asyncio.wait({task}, timeout=0)
            if number % 2:
                await asyncio.wait({asyncio.ensure_future(store.append(append_of(write(f"n-{number}", 0))))}, timeout=0)
            task.cancel()
            await asyncio.wait({task})
        last = await store.append(append_of(write("last", 0)))

    events = await read_all(store)
    assert [event.seq for event in events] == list(range(1, last[0].seq + 1))
    for number in range(30):
        assert len(await store.read_stream(f"vm-{number}")) in (0, 2)
    for number in range(1, 30, 2):
        assert len(await store.read_stream(f"n-{number}")) == 1


async def test_closing_writes_what_is_waiting_and_refuses_what_comes_later(world: LogWorld) -> None:
    store = await world.open()
    waiting = [asyncio.ensure_future(store.append(append_of(write(f"vm-{i}", 0)))) for i in range(5)]
    await asyncio.wait(waiting, timeout=0)
    await store.close()
    await store.close()

    assert [(await task)[0].seq for task in waiting] == [1, 2, 3, 4, 5]
    with pytest.raises(Closed):
        await store.append(append_of(write("vm-9", 0)))
    with pytest.raises(Closed):
        await store.read(0)


async def test_a_log_that_is_opened_again_is_the_same_and_goes_on(world: LogWorld) -> None:
    store = await world.open()
    await store.append(append_of(write("vm-1", 0, new("A"), new("B")), write("vm-2", 0), body="create"))
    before = await read_all(store)
    await store.close()

    store = await world.open()
    try:
        assert (store.node, store.epoch, await store.head()) == (NODE, EPOCH, 3)
        assert await read_all(store) == before
        with pytest.raises(AlreadyAccepted) as repeated:
            await store.append(append_of(write("vm-3", 0), body="create"))
        assert repeated.value.accepted == Accepted(digest_of("create"), 1, 3)
        with pytest.raises(WrongVersion):
            await store.append(append_of(write("vm-1", 0)))
        appended = await store.append(append_of(write("vm-1", 2, new("C")), write("vm-4", 0)))
        assert [(event.seq, event.version) for event in appended] == [(4, 3), (5, 1)]
    finally:
        await store.close()


async def test_a_second_writer_is_refused_until_the_first_has_closed(world: LogWorld) -> None:
    first = await world.open()
    with pytest.raises(Locked):
        await world.open()
    await first.append(append_of(write("vm-1", 0)))
    await first.close()

    second = await world.open()
    assert await second.head() == 1
    await second.close()
