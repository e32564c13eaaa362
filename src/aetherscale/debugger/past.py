"""The state of a node at any moment of its past, from the log alone: the node's own fold, its own views.

async with opened(state_dir, kinds) as log:
    past = await log.state_at(await log.position("2026-01-31T12:00:00Z"))
    past.views("vm", "default")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from aetherscale.debugger.changes import EventChange, Wanted, change_of
from aetherscale.debugger.folding import Counting, Fold, Passing
from aetherscale.debugger.history import HistoryThread, Report
from aetherscale.debugger.keyframes import KEYFRAME_EVENTS, Counts, Milestone
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.integrity import is_large, prove
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.sqlite import open_access
from aetherscale.eventstore.store import (
    BadImport,
    Locked,
    NotEmpty,
    StorageFull,
    StoreError,
    TooNew,
)
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.messages import Recorded, split_stream
from aetherscale.kernel.moments import from_text
from aetherscale.kernel.names import ambiguous, is_id, is_short_id, too_short
from aetherscale.kernel.registry import Aggregate, Kind, Registry, event_types
from aetherscale.kernel.registry import fold as fold_kind
from aetherscale.statedir import NotOurs

LOG_NAME: Final = "events.db"

_REASONS: Final[Mapping[type[StoreError], Reason]] = {
    BadImport: Reason.BAD_REQUEST,
    NotEmpty: Reason.CONFLICT,
    Locked: Reason.CONFLICT,
    TooNew: Reason.NOT_IMPLEMENTED,
    StorageFull: Reason.STORAGE_FULL,
}

Kinds = Sequence[Kind[Any]]


class Past(Struct, frozen=True):
    """Everything that a log knows as of `position`."""

    node: str
    position: int
    kinds: tuple[Kind[Any], ...]
    registries: Mapping[str, Registry[Any]]

    def views(self, kind: str, tenant: str, *, deleted: bool = False) -> list[Struct]:
        """The views of all objects of a kind as the node itself lists them: by name; deleted ones only if asked for."""
        return [self.view(kind, aggregate) for aggregate in self.objects(kind, tenant, deleted=deleted)]

    def objects(self, kind: str, tenant: str, *, deleted: bool = False) -> list[Aggregate[Any]]:
        """All objects of a kind by name; deleted ones only if asked for."""
        aggregates = [
            aggregate
            for aggregate in self.registries[kind].of_tenant(tenant)
            if deleted or aggregate.state.phase != "deleted"
        ]
        aggregates.sort(key=lambda aggregate: (aggregate.state.name, aggregate.id))
        return aggregates

    def find(self, kind: str, tenant: str, reference: str) -> Aggregate[Any]:
        """The object that a name, an id or its beginning means; where no object bears the name now, the one that bore
        it last.

        Raises `Refused`: not found where there is none, bad request where a beginning means several.
        """
        if refused := too_short(reference):
            raise refused
        registry = self.registries[kind]
        found = registry.find(kind, tenant, reference)
        if found is None and is_short_id(reference):
            meant = [aggregate for aggregate in registry.of_tenant(tenant) if aggregate.id.startswith(reference)]
            if len(meant) > 1:
                raise ambiguous(reference, [(aggregate.id, aggregate.state.name) for aggregate in meant])
            found = meant[0] if meant else None
        if found is None and not is_id(reference):
            bearers = [aggregate for aggregate in registry.of_tenant(tenant) if aggregate.state.name == reference]
            found = max(bearers, key=lambda aggregate: aggregate.seq, default=None)
        if found is None:
            names = sorted({aggregate.state.name for aggregate in registry.of_tenant(tenant)})
            raise Refused(
                Reason.NOT_FOUND,
                f"the log knows no {kind} {reference!r} up to event {self.position}",
                details={"known": names[:1000]},
                remedy=Task("replay", kind, options={"all": True}),
            )
        return found

    def view(self, kind: str, aggregate: Aggregate[Any]) -> Struct:
        """The view of one object."""
        return self._kind(kind).view(aggregate.state, self.node, aggregate.version, aggregate.requested_by)

    def _kind(self, name: str) -> Kind[Any]:
        return next(kind for kind in self.kinds if kind.name == name)


def fold(kinds: Kinds, recorded: Sequence[Recorded], registries: Mapping[str, Registry[Any]]) -> None:
    """Fold more events, in the order of the log, into the registries of all kinds, in place."""
    for kind in kinds:
        fold_kind(kind, registries[kind.name], recorded)


def empty(kinds: Kinds) -> dict[str, Registry[Any]]:
    """The registries before the first event."""
    return {kind.name: Registry() for kind in kinds}


class PastLog:
    """A log that is read for what it says about the past."""

    def __init__(
        self, reader: LogReader[Recorded], kinds: Kinds, *, is_proved: bool, history: HistoryThread | None = None
    ) -> None:
        """Without a history each moment is folded from the first event on."""
        self.is_proved = is_proved
        """Whether every event is known to be as it was written; of others only the end is known to be there."""
        self.kinds = tuple(kinds)
        self._reader = reader
        self._history = history

    @property
    def node(self) -> str:
        """The name of the node whose log it is."""
        return self._reader.node

    async def head(self) -> int:
        """The position of the last event."""
        return await self._reader.head()

    async def position(self, moment: str | None, now_us: int = 0) -> int:
        """The position that a sequence number or a time means; without one, the head.

        A time means the last event before the first one that is later. `now_us` is the time now, which times like `5m`
        count from. Raises `Refused` (bad request) for anything else.
        """
        head = await self.head()
        if moment is None:
            return head
        seq, time_us = moment_of(moment, now_us)
        if time_us is not None:
            return await self.position_of(time_us)
        if seq > head:
            raise Refused(Reason.BAD_REQUEST, f"the log ends at event {head}, got {moment[:40]}", field="at")
        return seq

    async def before(self, moment: str, now_us: int = 0) -> int:
        """The position before the first event that is of this number or later, or was recorded at this time or later.

        Raises `Refused` (bad request).
        """
        seq, time_us = moment_of(moment, now_us)
        return max(seq - 1, 0) if time_us is None else await self.position_of(time_us - 1)

    async def position_of(self, time_us: int) -> int:
        """The last event before the first one that is later than a time."""
        return (await self.positions_of([time_us]))[0]

    async def positions_of(self, times_us: Sequence[int]) -> list[int]:
        """The same of several times."""
        if self._history is not None and await self.head() >= KEYFRAME_EVENTS:
            return await self._history.ask(lambda history: history.positions_at(times_us))
        return [await self._reader.position_at(time_us) for time_us in times_us]

    async def state_at(self, position: int, *, deleted: bool = True) -> Past:
        """Everything as it was after the event at `position`; what was deleted by then may be left out."""
        if self._history is not None and position >= KEYFRAME_EVENTS:
            found = await self._history.ask(lambda history: history.state_at(position, deleted=deleted))
            return Past(self.node, position, self.kinds, found)
        registries = empty(self.kinds)
        async for page in self.pages(0, position):
            fold(self.kinds, page, registries)
        return Past(self.node, position, self.kinds, registries)

    async def changes(self, after: int, until: int, tenant: str, wanted: Wanted) -> list[EventChange]:
        """What the events after one position up to another one changed of a tenant's objects."""
        kinds, node = {kind.name: kind for kind in self.kinds}, self.node

        def tell(passing: Passing) -> EventChange | None:
            recorded, before, after = passing
            if after is None or recorded.tenant != tenant:
                return None
            change = change_of(kinds[split_stream(recorded.stream)[0]], node, before, after, recorded)
            return change if wanted.has(change) else None

        if self._history is not None:
            return await self._history.ask(lambda history: history.passing(after, until, tell))
        told = [tell(each) for each in await self._passing(until) if each[0].seq > after]
        return [each for each in told if each is not None]

    async def counts_of(self, positions: Sequence[int]) -> list[Counts]:
        """How many events up to each of some positions, which ascend, were asked for, happened, and failed."""
        if self._history is not None:
            return await self._history.ask(lambda history: history.counts_of(positions))
        counting, known = Counting(Milestone()), {0: Counts()}
        for recorded, before, after in await self._passing(positions[-1]):
            counting.count(before, after, recorded)
            known[recorded.seq] = counting.milestone.counts
        return [known[position] for position in positions]

    async def _passing(self, until: int) -> list[Passing]:
        """Every event up to a position, folded from the first one on."""
        fold = Fold(0, {kind.name: kind for kind in self.kinds}, empty(self.kinds), None, lambda name, before: [])
        return [each async for page in self.pages(0, until) for each in fold.passing(page)]

    async def pages(
        self, after: int, until: int, types: Sequence[str] | None = None
    ) -> AsyncIterator[Sequence[Recorded]]:
        """The events after one position up to another one, in pages; with `types` only those."""
        while after < until:
            page = await self._reader.read(after, types=types)
            wanted = [recorded for recorded in page if recorded.seq <= until]
            if wanted:
                yield wanted
            if not page or len(wanted) < len(page):
                return
            after = page[-1].seq

    async def event(self, seq: int) -> Recorded | None:
        """The event at one position."""
        found = await self._reader.read(seq - 1, 1) if seq > 0 else []
        return found[0] if found and found[0].seq == seq else None

    async def stream(self, name: str) -> Sequence[Recorded]:
        """All events of one stream."""
        return await self._reader.read_stream(name)

    def follow(self, after: int) -> AsyncIterator[Sequence[Recorded]]:
        """All events after a position, then those that come, for ever."""
        return self._reader.subscribe(after)


@asynccontextmanager
async def opened(
    state_dir: Path, kinds: Kinds, report: Report = lambda done, total: None, *, proving: bool = True
) -> AsyncIterator[PastLog]:
    """The log of a state directory, read beside the node that writes it or without one.

    A large log is not proved here, since that would take longer than most questions to it; nor is any with `proving`
    false, for who knows that the node has proved it. `report` is told, in another
    thread, how far keyframes are made, where that takes its time.
    Raises `Refused`: not found where there is none, internal where it is damaged or cannot be read.
    """
    path = log_of(state_dir)
    with explained():
        is_proved = proving and not is_large(path)
        if is_proved:
            await asyncio.to_thread(prove, path)
        access = await open_access(path)
        history = HistoryThread(path, kinds, report)
        try:
            reader = LogReader(access, Codec(event_types(tuple(kinds))).decoding)
            yield PastLog(reader, kinds, is_proved=is_proved, history=history)
        finally:
            await history.close()
            await access.close()


def moment_of(text: str, now_us: int) -> tuple[int, int | None]:
    """The number of an event, or 0 and a time in microseconds since 1970.

    Raises `Refused` (bad request) for anything else.
    """
    if text.isascii() and text.isdigit():
        return int(text.lstrip("0")[:18] or "0"), None
    try:
        return 0, from_text(text, now_us)
    except ValueError as wrong:
        expected = str(wrong).removeprefix("expected ")
        raise Refused(
            Reason.BAD_REQUEST, f"got {text[:80]!r}, expected the number of an event or {expected}", field="at"
        ) from None


def log_of(state_dir: Path) -> Path:
    """The log of a state directory. Raises `Refused` (not found) where there is none."""
    path = state_dir / LOG_NAME
    with explained():
        if state_dir.exists() and not state_dir.is_dir():
            raise Refused(
                Reason.NOT_FOUND,
                f"the state directory {state_dir} is a file: there is no event log in it",
                remedy="name the directory of a node with --state-dir",
            )
        if not path.exists():
            raise Refused(
                Reason.NOT_FOUND,
                f"there is no event log: {path}",
                remedy="name the state directory of a node with --state-dir",
                details={"missing": "event-log"},
            )
    return path


@contextmanager
def explained() -> Iterator[None]:
    """The errors of a log, as `Refused`, which gateways can show."""
    try:
        yield
    except StoreError as error:
        raise Refused(_REASONS.get(type(error), Reason.INTERNAL), str(error)) from error
    except NotOurs as error:
        raise Refused(
            Reason.INTERNAL, f"the event log cannot be used: {error.filename}: {error.strerror}", remedy=error.hint
        ) from error
    except OSError as error:
        raise Refused(
            Reason.INTERNAL, f"the event log cannot be used: {error.filename}: {error.strerror}", remedy=Task("doctor")
        ) from error
