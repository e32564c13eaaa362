"""Projections: state that is what events add up to, and snapshots of it, so that a start need not fold a whole log.

    state = fold(events)                                         replay
    state = fold(newest good snapshot, events after it)          load, and equal to the former

A snapshot is the whole state with the position it stands at. It belongs to one log (its epoch) and to one shape of the
projection (its fingerprint): after a change of shape the state is built anew beside the old snapshots, which stay until
the new one is saved, so that going back to the older version of the program costs nothing. Snapshots are a cache in a
file that may be deleted; a bad one is passed over. Two are kept of each projection.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from msgspec import Struct

from aetherscale.eventstore.garbage import unsearched
from aetherscale.eventstore.reader import Events, LogReader
from aetherscale.eventstore.store import StoreError
from aetherscale.kernel.messages import Event, Recorded

log = logging.getLogger(__name__)

S = TypeVar("S")

SNAPSHOT_EVENTS: Final = 10_000
"""How many events come between two snapshots: folding them takes some tens of milliseconds."""

KEPT_SNAPSHOTS: Final = 2

FOLD_PAGE: Final = 400
"""How many events are read before they are folded: about as many as the cache of a core holds."""

PAGES_AT_ONCE: Final = 50
"""How many pages are folded before the event loop, and whoever waits for the thread of the log, has its turn again."""


class Snapshot(Struct, frozen=True):
    """The state of a projection (msgpack) as of a position."""

    position: int
    state: bytes


class SnapshotStore(Protocol):
    """Where snapshots are kept. `sqlite/snapshots.py` is the real one, `MemorySnapshots` its fake."""

    async def snapshots(self, name: str, fingerprint: str, epoch: str) -> Sequence[Snapshot]:
        """The good snapshots of a projection, the newest first."""
        ...

    async def save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
        """Keep one more, and of the older ones the newest of the same fingerprint and epoch alone, in one transaction.

        Raises `StoreError` where it cannot be kept; what was there stays.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; idempotent."""
        ...


@dataclass(frozen=True)
class Projection(Generic[S]):
    """A fold. `apply(state, events)` may change the state that it is given, and returns the one that follows.

    `events` are the types that it wants: others are neither read nor decoded; None for all. `version` grows with each
    change of what `apply` does that does not show in the type of the state.
    """

    name: str
    state_type: Any
    initial: Callable[[], S]
    apply: Callable[[S, Sequence[Recorded]], S]
    events: tuple[type[Event], ...] | None = None
    version: int = 1

    @cached_property
    def fingerprint(self) -> str:
        """Names the shape of the state and of what it is folded from."""
        shape = msgspec.json.schema(self.state_type)
        events = None if self.events is None else sorted((event.__name__, event.SCHEMA) for event in self.events)
        return hashlib.sha256(msgspec.json.encode((self.version, shape, events), order="sorted")).hexdigest()[:32]

    @cached_property
    def _wanted(self) -> frozenset[type[Event]] | None:
        return None if self.events is None else frozenset(self.events)

    def fold(self, state: S, events: Sequence[Recorded]) -> S:
        """The state after more events, in the order of the log."""
        wanted = self._wanted
        if wanted is not None:
            events = [recorded for recorded in events if type(recorded.event) in wanted]
        return self.apply(state, events)

    def encode(self, state: S) -> bytes:
        """The state as a snapshot has it."""
        return msgspec.msgpack.encode(state)

    def decode(self, raw: bytes) -> S:
        """The inverse. Raises msgspec.MsgspecError."""
        state: S = msgspec.msgpack.decode(raw, type=self.state_type)
        return state


async def replay(
    projection: Projection[S],
    event_log: LogReader[Recorded],
    until: int | None = None,
    *,
    after: tuple[S, int] | None = None,
) -> tuple[S, int]:
    """The state as of position `until`, or of the end, from the log alone; with the position that was reached.

    It begins where `after` stands, if given. Raises what `fold_all` raises.
    """
    begun = after or (projection.initial(), 0)
    end = await event_log.head() if until is None else until
    [state] = await fold_all([projection], [begun], event_log, end)
    return state, max(begun[1], end)


async def load(
    projections: Sequence[Projection[Any]],
    event_log: LogReader[Recorded],
    kept: SnapshotStore,
    *,
    every: int = SNAPSHOT_EVENTS,
) -> tuple[list[Any], int]:
    """The states as of the end of the log, each from its newest good snapshot on; with the position that was reached.

    Where that took more events than the `every` that come between two snapshots it is saved: else each start would fold
    them again until a node has lived to write so many of its own. Raises what `fold_all` raises.
    """
    head = await event_log.head()
    begun = [await _newest(projection, event_log.epoch, kept, head) for projection in projections]
    states = await fold_all(projections, begun, event_log, head)
    for projection, state, (_, since) in zip(projections, states, begun, strict=True):
        if head - since > every:
            await _save(kept, projection, event_log.epoch, Snapshot(head, projection.encode(state)))
    return states, head


async def fold_all(
    projections: Sequence[Projection[Any]], begun: Sequence[tuple[Any, int]], event_log: LogReader[Recorded], until: int
) -> list[Any]:
    """The states as of a position, each begun as a state and where that stands: one pass over the log for all of them.

    An event is read and decoded once for all projections, and not at all where none wants it. Raises `TooNew` where the
    log has a type of event that this program does not know, wanted or not: its meaning is unknown. Also what
    `LogReader.read` raises.
    """
    await event_log.check_types()
    states = [state for state, _ in begun]
    types = _types_of(projections)
    read = min((since for _, since in begun), default=until)
    with unsearched():
        while read < until:
            read = await event_log.run(partial(_fold_some, projections, begun, states, types, read, until))
    return states


def _fold_some(
    projections: Sequence[Projection[Any]],
    begun: Sequence[tuple[Any, int]],
    states: list[Any],
    types: Sequence[str] | None,
    read: int,
    until: int,
    events: Events[Recorded],
) -> int:
    """Fold the next pages into `states`; the position that was reached, `until` at the end of the log.

    In the thread that reads: where another one folds, each page goes from the cache of one core to that of another,
    which takes a third of the time. Small pages stay in the cache.
    """
    for _ in range(PAGES_AT_ONCE):
        page = events(read, FOLD_PAGE, types)
        known = page if not page or page[-1].seq <= until else [each for each in page if each.seq <= until]
        for number, (projection, (_, since)) in enumerate(zip(projections, begun, strict=True)):
            states[number] = projection.fold(
                states[number], known if since <= read else [each for each in known if each.seq > since]
            )
        if len(page) < FOLD_PAGE or page[-1].seq >= until:
            return until
        read = page[-1].seq
        del page, known  # or the next page is read beside this one
    return read


def _types_of(projections: Sequence[Projection[Any]]) -> list[str] | None:
    """The types of event that any of them wants; None for all."""
    wanted: set[str] = set()
    for projection in projections:
        if projection.events is None:
            return None
        wanted.update(event.__name__ for event in projection.events)
    return sorted(wanted)


async def _newest(projection: Projection[S], epoch: str, kept: SnapshotStore, head: int) -> tuple[S, int]:
    """The newest good snapshot of a log that ends at `head`, and where it stands; else the beginning."""
    for snapshot in await kept.snapshots(projection.name, projection.fingerprint, epoch):
        if snapshot.position > head:
            continue
        try:
            with unsearched():
                return projection.decode(snapshot.state), snapshot.position
        except msgspec.MsgspecError as bad:
            log.warning("%s: the snapshot at event %d is passed over: %s", projection.name, snapshot.position, bad)
    return projection.initial(), 0


async def _save(kept: SnapshotStore, projection: Projection[Any], epoch: str, snapshot: Snapshot) -> None:
    """Save a snapshot. A failure is logged: there will be others."""
    try:
        await kept.save(projection.name, projection.fingerprint, epoch, snapshot)
    except StoreError as failure:
        log.warning("%s: no snapshot at event %d: %s", projection.name, snapshot.position, failure)


class Snapshots:
    """Saves the states of a running node: every so many events, and at the end.

    `event_log.on_commit(snapshots.committed)` after whatever folds the events, and `run` in a task.
    """

    def __init__(self, kept: SnapshotStore, epoch: str, position: int, *, every: int = SNAPSHOT_EVENTS) -> None:
        """`position` is where the states stand now."""
        self._kept = kept
        self._epoch = epoch
        self._every = every
        self._position = self._saved = position
        self._watched: list[tuple[Projection[Any], Callable[[], Any]]] = []
        self._due = asyncio.Event()

    def watch(self, projection: Projection[S], state: Callable[[], S]) -> None:
        """Save what `state` returns, which has to stand where the last committed event is."""
        self._watched.append((projection, state))

    def committed(self, recorded: Sequence[Recorded]) -> None:
        """The states have moved on."""
        self._position = recorded[-1].seq
        if self._position - self._saved >= self._every:
            self._due.set()

    async def run(self) -> None:
        """Save whenever it is due, for ever. A failure is logged, and the snapshot saved another time."""
        while True:
            await self._due.wait()
            self._due.clear()
            await self.save()

    async def save(self) -> None:
        """Save all states as they are now, unless they have been."""
        position = self._position
        if position == self._saved:
            return
        states = [(projection, projection.encode(state())) for projection, state in self._watched]
        self._saved = position
        for projection, state in states:
            await _save(self._kept, projection, self._epoch, Snapshot(position, state))


class MemorySnapshots:
    """The fake of the file: snapshots in a dictionary."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[str, str, Snapshot]]] = {}

    async def snapshots(self, name: str, fingerprint: str, epoch: str) -> Sequence[Snapshot]:
        """As in `SnapshotStore`."""
        return [kept for *belongs, kept in self._kept.get(name, []) if belongs == [fingerprint, epoch]]

    async def save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
        """As in `SnapshotStore`."""
        others = [kept for kept in await self.snapshots(name, fingerprint, epoch) if kept.position < snapshot.position]
        self._kept[name] = [(fingerprint, epoch, kept) for kept in [snapshot, *others][:KEPT_SNAPSHOTS]]

    async def close(self) -> None:
        """As in `SnapshotStore`."""
