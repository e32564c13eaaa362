"""Snapshots of projections: when they are taken, which are believed, and that with the tail they make a full replay."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.eventstore.memory import MemoryLog
from aetherscale.eventstore.projections import MemorySnapshots, Snapshot, Snapshots, load, replay
from aetherscale.eventstore.store import StorageFull
from aetherscale.kernel.messages import Event
from tests.support.accounts import ACCOUNTS, SEEN, Accounts, Paid, Renamed, Seen, as_loaded, opened, some, write

batches = st.lists(
    st.tuples(
        st.sampled_from(["account-1", "account-2", "account-3"]),
        st.lists(
            st.one_of(st.builds(Paid, st.integers(-9, 9)), st.builds(Renamed, st.text(max_size=3)), st.just(Seen())),
            min_size=1,
            max_size=4,
        ),
    ),
    max_size=12,
)


async def test_what_took_long_to_fold_is_saved_by_the_start_itself() -> None:
    log, kept = await opened(), MemorySnapshots()
    await write(log, some(5))
    [state], _ = await load([ACCOUNTS], log, kept, every=5)
    assert not await kept.snapshots(ACCOUNTS.name, ACCOUNTS.fingerprint, log.epoch)

    await load([ACCOUNTS], log, kept, every=4)
    found = await kept.snapshots(ACCOUNTS.name, ACCOUNTS.fingerprint, log.epoch)
    assert [(each.position, ACCOUNTS.decode(each.state)) for each in found] == [(5, state)]

    await write(log, some(4))
    await load([ACCOUNTS], log, kept, every=4)
    found = await kept.snapshots(ACCOUNTS.name, ACCOUNTS.fingerprint, log.epoch)
    assert [each.position for each in found] == [5], "only what came after the snapshot was folded"
    await log.close()


class Full(MemorySnapshots):
    """On a disk without room."""

    async def save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
        raise StorageFull("no room for a snapshot")


async def test_a_start_goes_on_where_its_snapshot_cannot_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    log = await opened()
    await write(log, some(5))
    assert (await load([ACCOUNTS], log, Full(), every=4))[1] == 5
    assert "no snapshot at event 5" in caplog.text
    await log.close()


@given(batches, st.integers(1, 7))
def test_snapshot_and_tail_are_the_full_replay(written: list[tuple[str, list[Event]]], every: int) -> None:
    async def play() -> None:
        memory, kept = MemoryLog("host1", "epoch1"), MemorySnapshots()
        log = await opened(memory)
        live: list[Accounts] = [Accounts()]
        log.on_commit(lambda recorded: live.__setitem__(0, ACCOUNTS.fold(live[0], recorded)))
        snapshots = Snapshots(kept, log.epoch, 0, every=every)
        snapshots.watch(ACCOUNTS, lambda: live[0])
        log.on_commit(snapshots.committed)
        saving = asyncio.create_task(snapshots.run())
        for stream, events in written:
            await write(log, events, stream)
        assert live[0] == (await replay(ACCOUNTS, log))[0]
        assert await load([ACCOUNTS], log, kept) == as_loaded(await replay(ACCOUNTS, log))
        for until in range(await log.head()):
            begun = await replay(ACCOUNTS, log, until)
            again = msgspec.msgpack.decode(msgspec.msgpack.encode(begun), type=tuple[Accounts, int])
            assert await replay(ACCOUNTS, log, after=again) == await replay(ACCOUNTS, log)
        saving.cancel()
        await log.close()

    asyncio.run(play())


async def test_snapshots_are_taken_every_so_many_events_and_at_the_end() -> None:
    log, kept = await opened(), MemorySnapshots()
    counted = [0]
    log.on_commit(lambda recorded: counted.__setitem__(0, counted[0] + len(recorded)))
    snapshots = Snapshots(kept, log.epoch, 0, every=10)
    snapshots.watch(SEEN, lambda: counted[0])
    log.on_commit(snapshots.committed)
    saving = asyncio.create_task(snapshots.run())

    async def positions() -> list[int]:
        await asyncio.wait({saving}, timeout=0)
        return [each.position for each in await kept.snapshots("seen", SEEN.fingerprint, log.epoch)]

    await write(log, some(9))
    assert await positions() == []
    await write(log, some(1))
    assert await positions() == [10]
    await write(log, some(25))
    assert await positions() == [35, 10]
    await write(log, some(4))
    assert await positions() == [35, 10]
    await snapshots.save()
    assert await positions() == [39, 35]
    await snapshots.save()
    assert await positions() == [39, 35]
    saving.cancel()
    await log.close()


@pytest.mark.parametrize(
    "bad",
    [
        Snapshot(3, b"\xc1"),
        Snapshot(3, msgspec.msgpack.encode({"by_stream": 7})),
        Snapshot(99, msgspec.msgpack.encode(Accounts(folded=50))),
    ],
    ids=["no msgpack", "another type", "of a log that was longer"],
)
async def test_a_bad_snapshot_is_passed_over(bad: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    log, kept = await opened(), MemorySnapshots()
    await write(log, some(6))
    good = await replay(ACCOUNTS, log, 2)
    await kept.save(ACCOUNTS.name, ACCOUNTS.fingerprint, log.epoch, Snapshot(2, ACCOUNTS.encode(good[0])))
    await kept.save(ACCOUNTS.name, ACCOUNTS.fingerprint, log.epoch, bad)

    with caplog.at_level(logging.WARNING):
        assert await load([ACCOUNTS], log, kept) == as_loaded(await replay(ACCOUNTS, log))
    await log.close()


async def test_snapshots_of_another_log_are_not_taken() -> None:
    kept = MemorySnapshots()
    await kept.save(SEEN.name, SEEN.fingerprint, "epoch1", Snapshot(1, SEEN.encode(99)))
    log = await opened(MemoryLog("host1", "epoch2"))
    await write(log, some(2))
    assert await load([SEEN], log, kept) == ([2], 2)
    await log.close()


async def test_a_new_shape_is_built_beside_the_old_one_which_serves_until_it_is_saved() -> None:
    log, kept = await opened(), MemorySnapshots()
    await write(log, some(4))
    await kept.save(SEEN.name, SEEN.fingerprint, log.epoch, Snapshot(4, SEEN.encode(1004)))
    doubled = replace(SEEN, version=2, apply=lambda count, events: count + 2 * len(events))

    assert await load([doubled], log, kept) == ([8], 4)
    assert await load([SEEN], log, kept) == ([1004], 4), "the older program still finds its snapshot"
    await kept.save(doubled.name, doubled.fingerprint, log.epoch, Snapshot(4, doubled.encode(8)))
    assert await load([SEEN], log, kept) == ([4], 4), "it is dropped with the first of the new ones"
    await log.close()


async def test_a_snapshot_that_cannot_be_kept_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = await opened()
    snapshots = Snapshots(Full(), log.epoch, 0)
    snapshots.watch(SEEN, lambda: 1)
    log.on_commit(snapshots.committed)
    await write(log, some(1))
    await snapshots.save()
    assert "seen: no snapshot at event 1: no room" in caplog.text
    await log.close()
