"""Projections: the state is what the events add up to, up to any position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from msgspec import Struct, field

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.memory import MemoryBackend, MemoryLog, open_memory
from aetherscale.eventstore.projections import FOLD_PAGE, MemorySnapshots, Projection, Snapshot, load, replay
from aetherscale.eventstore.store import Decoding, Reading, TooNew
from aetherscale.kernel.messages import Event
from tests.support.accounts import ACCOUNTS, CODEC, SEEN, Account, Accounts, Paid, Renamed, Seen, opened, some, write

T = TypeVar("T")


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
