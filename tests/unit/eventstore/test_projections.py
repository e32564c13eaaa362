"""State is what events add up to, whether it is folded from the start or from a snapshot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct, field

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.memory import MemoryBackend, MemoryLog, open_memory
from aetherscale.eventstore.projections import FOLD_PAGE, MemorySnapshots, Projection, Snapshot, Snapshots, load, replay
from aetherscale.eventstore.store import Decoding, Reading, StorageFull, TooNew
from aetherscale.kernel.messages import Envelope, Event, Recorded

T = TypeVar("T")


class Paid(Event, frozen=True):
    amount: int


class Renamed(Event, frozen=True):
    name: str


class Seen(Event, frozen=True):
    pass


class Account(Struct):
    """What is kept of one stream."""

    name: str = ""
    total: int = 0
    last_seq: int = 0


class Accounts(Struct):
    """The state: mutable, so that folding does not copy it."""

    by_stream: dict[str, Account] = field(default_factory=dict)
    folded: int = 0


def apply(state: Accounts, events: Sequence[Recorded]) -> Accounts:
    for recorded in events:
        apply_one(state, recorded)
    return state


def apply_one(state: Accounts, recorded: Recorded) -> None:
    account = state.by_stream.setdefault(recorded.stream, Account())
    match recorded.event:
        case Paid(amount):
            account.total = account.total * 3 + amount
        case Renamed(name):
            account.name = name
        case _:
            raise AssertionError("a projection is given what it wants alone")
    account.last_seq = recorded.seq
    state.folded += 1


ACCOUNTS = Projection("accounts", Accounts, Accounts, apply, events=(Paid, Renamed))
SEEN = Projection("seen", int, int, lambda count, events: count + len(events))
CODEC = Codec([Paid, Renamed, Seen])


async def opened(log: MemoryLog | None = None) -> EventLog:
    return EventLog(await open_memory(log or MemoryLog("host1", "epoch1")), CODEC)


def as_loaded(replayed: tuple[Accounts, int]) -> tuple[list[Accounts], int]:
    return [replayed[0]], replayed[1]


async def write(log: EventLog, events: Sequence[Event], stream: str = "account-1") -> None:
    version = len(await log.read_stream(stream))
    envelope = Envelope(None, "default", "user:test", "command", "correlation", None, 0)
    await log.append([Write(stream, version, tuple(events))], envelope)


def some(count: int) -> list[Event]:
    return [Paid(number) if number % 3 else Seen() for number in range(1, count + 1)]


async def test_a_replay_folds_what_the_projection_wants_up_to_a_position() -> None:
    log = await opened()
    await write(log, [Paid(1), Seen(), Renamed("a"), Paid(2), Paid(3)])

    state, position = await replay(ACCOUNTS, log)
    assert (state, position) == (Accounts({"account-1": Account("a", 18, 5)}, 4), 5)
    state, position = await replay(ACCOUNTS, log, 4)
    assert (state, position) == (Accounts({"account-1": Account("a", 5, 4)}, 3), 4)
    assert await replay(ACCOUNTS, log, 0) == (Accounts(), 0)
    assert await replay(SEEN, log) == (5, 5)
    await log.close()


async def test_loading_folds_only_what_follows_the_snapshot() -> None:
    log, kept = await opened(), MemorySnapshots()
    await write(log, some(5))
    [state], position = await load([ACCOUNTS], log, kept)
    marked = Accounts(state.by_stream, folded=1000)
    await kept.save(ACCOUNTS.name, ACCOUNTS.fingerprint, log.epoch, Snapshot(position, ACCOUNTS.encode(marked)))
    await write(log, some(5))

    [state], position = await load([ACCOUNTS], log, kept)
    assert position == 10
    assert state.folded == 1000 + 4, "the snapshot was taken, and the tail was folded"
    assert state.by_stream == (await replay(ACCOUNTS, log))[0].by_stream
    await log.close()


class Pages(MemoryBackend):
    """Notes the first position of every page that is read."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.asked: list[tuple[int, list[str] | None]] = []

    async def ask(self, question: Callable[[Reading], T]) -> T:
        noting = NotingReads(self._log, self.asked)
        return question(noting)


class NotingReads:
    def __init__(self, log: MemoryLog, asked: list[tuple[int, list[str] | None]]) -> None:
        self._log, self._asked = log, asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, decoding: Decoding[T], after: int, limit: int, types: Sequence[str] | None = None) -> Sequence[T]:
        self._asked.append((after, None if types is None else list(types)))
        return self._log.read(decoding, after, limit, types)


async def test_all_projections_are_loaded_in_one_pass_that_begins_at_the_least_position() -> None:
    pages = Pages(MemoryLog("host1", "epoch1"))
    log, kept = EventLog(await LogStore.start(pages), CODEC), MemorySnapshots()
    for _ in range(3):
        await write(log, some(1000))
    paid = replace(SEEN, name="paid", events=(Paid, Renamed))
    every, renamed = replace(SEEN, name="every"), replace(SEEN, name="renamed", events=(Renamed,))
    stands = {paid: 1500, every: 700, renamed: 2999}
    for projection, position in stands.items():
        state, _ = await replay(projection, log, position)
        await kept.save(
            projection.name, projection.fingerprint, log.epoch, Snapshot(position, projection.encode(state))
        )

    pages.asked.clear()
    assert await load(list(stands), log, kept) == ([3 * 667, 3000, 0], 3000)
    each_once = [(after, None) for after in range(700, 3000, FOLD_PAGE)]
    assert pages.asked == each_once, "each page once, from the least position on"

    pages.asked.clear()
    assert await load([paid, renamed], log, kept) == ([3 * 667, 0], 3000)
    assert pages.asked[0][0] == 1500
    assert all(types == ["Paid", "Renamed"] for _, types in pages.asked), "what neither wants is not read"
    await log.close()


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


async def test_a_start_goes_on_where_its_snapshot_cannot_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemorySnapshots):
        async def save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
            raise StorageFull("no room")

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


async def test_an_event_that_nobody_knows_is_not_skipped_by_those_who_do_not_want_it() -> None:
    memory = MemoryLog("host1", "epoch1", "9.9.9")
    log = await opened(memory)
    await write(log, [Paid(1), Seen()])
    await log.close()
    older = EventLog(await open_memory(memory), Codec([Paid, Renamed]))
    with pytest.raises(TooNew, match=r"Seen, schema 1, first written by aetherscale 9\.9\.9"):
        await load([ACCOUNTS], older, MemorySnapshots())
    await older.close()


class WiderAccounts(Struct):
    by_stream: dict[str, Account] = field(default_factory=dict)
    folded: int = 0
    largest: int = 0


class PaidMore(Event, frozen=True):
    SCHEMA = 2
    amount: int


PaidMore.__name__ = "Paid"


@pytest.mark.parametrize(
    "changed",
    [
        replace(ACCOUNTS, state_type=WiderAccounts, initial=WiderAccounts),  # type: ignore[arg-type]
        replace(ACCOUNTS, version=2),
        replace(ACCOUNTS, events=(Paid,)),
        replace(ACCOUNTS, events=None),
        replace(ACCOUNTS, events=(PaidMore, Renamed)),
    ],
    ids=["state", "version", "fewer events", "all events", "a newer event"],
)
def test_a_change_of_shape_changes_the_fingerprint(changed: Projection[Accounts]) -> None:
    assert changed.fingerprint != ACCOUNTS.fingerprint
    assert replace(ACCOUNTS, events=(Renamed, Paid)).fingerprint == ACCOUNTS.fingerprint


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
    class Full(MemorySnapshots):
        async def save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
            raise StorageFull("no room for a snapshot")

    log = await opened()
    snapshots = Snapshots(Full(), log.epoch, 0)
    snapshots.watch(SEEN, lambda: 1)
    log.on_commit(snapshots.committed)
    await write(log, some(1))
    await snapshots.save()
    assert "seen: no snapshot at event 1: no room" in caplog.text
    await log.close()
