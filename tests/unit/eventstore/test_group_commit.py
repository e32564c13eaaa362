"""How appends that wait together are committed together, over a backend whose commits are held and made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.groupcommit import BATCH_EVENTS, LogStore
from aetherscale.eventstore.memory import MemoryBackend, MemoryLog
from aetherscale.eventstore.store import Append, Damaged, InDoubt, StorageFull, StoreError, WrongVersion
from tests.support.event_logs import append_of, new, write


class HeldBackend(MemoryBackend):
    """Notes every batch, waits until it may go on, and fails as it is told to."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.batches: list[int] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.begun = asyncio.Event()
        self.failure: BaseException | None = None
        self.fails_from = 0
        self.head_synced = asyncio.Event()
        self.may_sync = asyncio.Event()
        self.may_sync.set()

    async def commit(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        self.batches.append(len(appends))
        self.begun.set()
        await self.may_go_on.wait()
        if self.failure is not None and len(appends) > self.fails_from:
            raise self.failure
        return await super().commit(appends)

    async def sync_head(self) -> None:
        self.head_synced.set()
        await self.may_sync.wait()


@pytest.fixture
def backend() -> HeldBackend:
    return HeldBackend(MemoryLog("host1", "epoch1"))


def numbered(count: int, first: int = 0) -> list[Append]:
    return [append_of(write(f"vm-{number}", 0), command_id=str(number)) for number in range(first, first + count)]


async def test_what_gathers_while_a_commit_is_on_its_way_is_the_next_batch(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)
    backend.may_go_on.clear()
    first = asyncio.ensure_future(store.append(numbered(1)[0]))
    await backend.begun.wait()
    others = [asyncio.ensure_future(store.append(append)) for append in numbered(40, first=1)]
    await asyncio.wait(others, timeout=0)
    backend.may_go_on.set()
    await asyncio.gather(first, *others)
    await store.close()

    assert backend.batches == [1, 40]


async def test_a_batch_is_bounded_and_no_append_is_split(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)
    sizes = [400, 400, 400, BATCH_EVENTS + 1, 400]
    appends = [append_of(write(f"vm-{i}", 0, *[new()] * size)) for i, size in enumerate(sizes)]
    await asyncio.gather(*map(store.append, appends))
    large = [append_of(write(f"vm-large-{i}", 0, new(data=bytes(400_000)))) for i in range(5)]
    await asyncio.gather(*map(store.append, large))
    await store.close()

    assert backend.batches == [2, 1, 1, 1, 2, 2, 1]


async def test_where_a_batch_fails_each_append_is_tried_alone(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)
    backend.failure, backend.fails_from = StorageFull("no room for two"), 1
    appends = [*numbered(3), append_of(write("vm-1", 0)), *numbered(1, first=3)]
    outcomes = await asyncio.gather(*map(store.append, appends), return_exceptions=True)
    await store.close()

    assert backend.batches == [5, 1, 1, 1, 1, 1]
    assert isinstance(outcomes.pop(3), WrongVersion)
    assert [outcome[0].seq for outcome in outcomes if not isinstance(outcome, BaseException)] == [1, 2, 3, 4]


async def test_an_append_that_fails_alone_too_is_refused_and_nothing_of_it_is_there(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)
    backend.failure = StorageFull("no room")
    with pytest.raises(StorageFull):
        await store.append(numbered(1)[0])
    assert await store.head() == 0
    backend.failure = None
    assert (await store.append(numbered(1)[0]))[0].seq == 1
    await store.close()


@pytest.mark.parametrize("failure", [InDoubt("who knows"), Damaged("it is not what was written", 7)])
async def test_after_doubt_or_damage_nothing_is_written_any_more(backend: HeldBackend, failure: StoreError) -> None:
    store = await LogStore.start(backend)
    await store.append(numbered(1)[0])
    backend.failure, backend.may_go_on = failure, asyncio.Event()
    backend.begun.clear()
    failing = asyncio.ensure_future(store.append(numbered(1, first=1)[0]))
    await backend.begun.wait()
    waiting = asyncio.ensure_future(store.append(numbered(1, first=2)[0]))
    await asyncio.wait({waiting}, timeout=0)
    backend.may_go_on.set()
    for task in (failing, waiting):
        with pytest.raises(type(failure), match=str(failure)):
            await task
    backend.failure = None
    with pytest.raises(type(failure), match=str(failure)):
        await store.append(numbered(1, first=3)[0])

    assert backend.batches == [1, 1]
    assert len(await store.read(0)) == 1, "reading goes on"
    await store.close()


async def test_an_append_that_is_cancelled_before_its_batch_is_not_written(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)
    backend.may_go_on.clear()
    first = asyncio.ensure_future(store.append(numbered(1)[0]))
    await backend.begun.wait()
    second = asyncio.ensure_future(store.append(numbered(1, first=1)[0]))
    third = asyncio.ensure_future(store.append(numbered(1, first=2)[0]))
    await asyncio.wait({second, third}, timeout=0)
    second.cancel()
    first.cancel()
    backend.may_go_on.set()
    await third
    await asyncio.wait({first, second})
    await store.close()

    assert backend.batches == [1, 1]
    assert first.cancelled()
    assert second.cancelled()


async def test_what_no_acknowledgement_waits_for_is_synced_soon_after(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)
    await store.append(numbered(1)[0])
    assert not backend.head_synced.is_set()
    await asyncio.wait_for(backend.head_synced.wait(), 20)
    await store.close()


async def test_what_waits_behind_the_settling_is_written_before_the_store_closes(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)
    backend.may_sync.clear()
    await store.append(numbered(1)[0])
    await asyncio.wait_for(backend.head_synced.wait(), 20)
    waiting = asyncio.ensure_future(store.append(numbered(1, first=1)[0]))
    closing = asyncio.ensure_future(store.close())
    await asyncio.wait({waiting, closing}, timeout=0)
    backend.may_sync.set()
    assert (await waiting)[0].seq == 2
    await closing


async def test_a_writer_that_breaks_down_leaves_nobody_waiting(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)
    backend.failure = RuntimeError("a bug")
    with pytest.raises(InDoubt):
        await store.append(numbered(1)[0])
    with pytest.raises(InDoubt):
        await store.append(numbered(1, first=1)[0])
    with pytest.raises(RuntimeError, match="a bug"):
        await store.close()


async def test_a_listener_that_fails_leaves_nobody_waiting(backend: HeldBackend) -> None:
    store = await LogStore.start(backend)

    def fail(_: object) -> None:
        raise RuntimeError("a bug")

    store.on_commit(fail)
    assert (await store.append(numbered(1)[0]))[0].seq == 1
    with pytest.raises(InDoubt, match="the process has to end"):
        await store.append(numbered(1, first=1)[0])
    with pytest.raises(RuntimeError, match="a bug"):
        await store.close()
