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
import gc
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from msgspec import Struct

from aetherscale.eventstore.log import LogReader
from aetherscale.eventstore.store import PAGE, StoreError
from aetherscale.kernel.messages import Event, Recorded

log = logging.getLogger(__name__)

S = TypeVar("S")

SNAPSHOT_EVENTS: Final = 10_000
"""How many events come between two snapshots: folding them takes some tens of milliseconds."""

KEPT_SNAPSHOTS: Final = 2


class Snapshot(Struct, frozen=True):
    """The state of a projection (msgpack) as of a position."""

    position: int
    state: bytes


class Views(Protocol):
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
    """A fold. `apply(state, recorded)` may change the state that it is given, and returns the one that follows.

    `events` are the types that it wants: others are neither read nor decoded; None for all. `version` grows with each
    change of what `apply` does that does not show in the type of the state.
    """

    name: str
    state_type: Any
    initial: Callable[[], S]
    apply: Callable[[S, Recorded], S]
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
        wanted, apply = self._wanted, self.apply
        for recorded in events:
            if wanted is None or type(recorded.event) in wanted:
                state = apply(state, recorded)
        return state

    def encode(self, state: S) -> bytes:
        """The state as a snapshot has it."""
        return msgspec.msgpack.encode(state)

    def decode(self, raw: bytes) -> S:
        """The inverse. Raises msgspec.MsgspecError."""
        state: S = msgspec.msgpack.decode(raw, type=self.state_type)
        return state


async def replay(
    projection: Projection[S], event_log: LogReader, until: int | None = None, *, after: tuple[S, int] | None = None
) -> tuple[S, int]:
    """The state as of position `until`, or of the end, from the log alone; with the position that was reached.

    It begins where `after` stands, if given. Raises `TooNew` where the log has a type of event that this program does
    not know, wanted or not: its meaning is unknown. Also what `LogReader.read` raises.
    """
    await event_log.check_types()
    state, position = after or (projection.initial(), 0)
    end = await event_log.head() if until is None else until
    types = None if projection.events is None else [event.__name__ for event in projection.events]
    read = position
    with _unsearched():
        while read < end:
            page = await event_log.read(read, PAGE, types)
            if page and page[-1].seq > end:
                page = [recorded for recorded in page if recorded.seq <= end]
            state = projection.fold(state, page)
            if len(page) < PAGE:
                break
            read = page[-1].seq
    return state, max(position, end)


async def load(
    projection: Projection[S], event_log: LogReader, views: Views, *, every: int = SNAPSHOT_EVENTS
) -> tuple[S, int]:
    """The state as of the end of the log, from the newest good snapshot on; with the position that was reached.

    Where that took more events than the `every` that come between two snapshots it is saved: else each start would fold
    them again until a node has lived to write so many of its own. Raises what `replay` raises.
    """
    head = await event_log.head()
    since: tuple[S, int] | None = None
    for snapshot in await views.snapshots(projection.name, projection.fingerprint, event_log.epoch):
        if snapshot.position > head:
            continue
        try:
            with _unsearched():
                state = projection.decode(snapshot.state)
        except msgspec.MsgspecError as bad:
            log.warning("%s: the snapshot at event %d is passed over: %s", projection.name, snapshot.position, bad)
            continue
        since = (state, snapshot.position)
        break
    begun = since[1] if since else 0
    state, position = await replay(projection, event_log, head, after=since)
    if position - begun > every:
        await _save(views, projection, event_log.epoch, Snapshot(position, projection.encode(state)))
    return state, position


async def _save(views: Views, projection: Projection[Any], epoch: str, snapshot: Snapshot) -> None:
    """Save a snapshot. A failure is logged: there will be others."""
    try:
        await views.save(projection.name, projection.fingerprint, epoch, snapshot)
    except StoreError as failure:
        log.warning("%s: no snapshot at event %d: %s", projection.name, snapshot.position, failure)


@contextmanager
def _unsearched() -> Iterator[None]:
    """No search for garbage meanwhile: it would walk through a state that only grows, again and again."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


class Snapshots:
    """Saves the states of a running node: every so many events, and at the end.

    `event_log.on_commit(snapshots.committed)` after whatever folds the events, and `run` in a task.
    """

    def __init__(self, views: Views, epoch: str, position: int, *, every: int = SNAPSHOT_EVENTS) -> None:
        """`position` is where the states stand now."""
        self._views = views
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
            await _save(self._views, projection, self._epoch, Snapshot(position, state))


class MemorySnapshots:
    """The fake of the file: snapshots in a dictionary."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[str, str, Snapshot]]] = {}

    async def snapshots(self, name: str, fingerprint: str, epoch: str) -> Sequence[Snapshot]:
        """As in `Views`."""
        return [kept for *belongs, kept in self._kept.get(name, []) if belongs == [fingerprint, epoch]]

    async def save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
        """As in `Views`."""
        others = [kept for kept in await self.snapshots(name, fingerprint, epoch) if kept.position < snapshot.position]
        self._kept[name] = [(fingerprint, epoch, kept) for kept in [snapshot, *others][:KEPT_SNAPSHOTS]]

    async def close(self) -> None:
        """As in `Views`."""
