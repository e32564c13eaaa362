"""The questions that a page asks about the past, each answered from one log: a state, a difference, an object, why, how
much happened when, and what each event changed.

Whoever folds the past asks them: the historian, a process of its own. Nothing here knows how a question came.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from aetherscale.debugger.changes import MAX_CHANGES, EventChange, Wanted
from aetherscale.debugger.diff import Diff, diff
from aetherscale.debugger.keyframes import MILESTONE_EVENTS
from aetherscale.debugger.past import Past, PastLog
from aetherscale.debugger.why import Why, explain
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.messages import stream_name
from aetherscale.kernel.names import is_id
from aetherscale.kernel.registry import Aggregate, Kind, advance_by
from aetherscale.kernel.times import to_rfc3339

EXACT_EVENTS: Final = 4096
"""A density of at most as many events has its columns to the event; one of more to the milestone."""


class State(Struct, frozen=True, rename="kebab"):
    """Everything that was there after an event, and nothing that was deleted by then."""

    position: int
    time: str
    """Of that event; "" before the first one."""
    node: str
    counts: dict[str, int]
    """How many objects of each kind there were."""
    state: dict[str, list[Any]]
    """The views by kind, by name: at most as many of each kind as were asked for."""


class Page(Struct, frozen=True, rename="kebab"):
    """What the events after one position up to another one changed."""

    after: int
    until: int
    """The last event that was looked at: go on after it."""
    changes: list[EventChange]


class Column(Struct, frozen=True, rename="kebab"):
    """The events after one position up to another one, and how many of them there are of each sort."""

    after: int
    until: int
    time: str
    """When the column begins."""
    asked: int
    happened: int
    failed: int


class Density(Struct, frozen=True, rename="kebab"):
    """How much happened when, from one moment to another one, in columns of the same length in time."""

    after: int
    until: int
    exact: bool
    """Whether an event stands in the column of its time; else it may stand beside it, some events too early or late."""
    columns: list[Column]


class Moves:
    """Answers the questions about one log, of one tenant."""

    def __init__(self, log: PastLog, tenant: str) -> None:
        self._log, self._tenant = log, tenant

    async def state(self, position: int, kinds: Sequence[str], limit: int | None) -> State:
        """The state after an event, of some kinds or all."""
        past = await self._log.state_at(position, deleted=False)
        found = {name: past.objects(name, self._tenant) for name in kinds or past.registries}
        return State(
            position=position,
            time=await self._time_of(position),
            node=past.node,
            counts={name: len(objects) for name, objects in found.items()},
            state={name: [past.view(name, each) for each in objects[:limit]] for name, objects in found.items()},
        )

    async def diff(self, before: int, after: int) -> Diff:
        """What changed from one moment to a later one."""
        return diff(await self._log.state_at(before), await self._log.state_at(after), self._tenant)

    async def object(self, kind: str, reference: str, position: int) -> Any:
        """The view of an object after an event. Raises `Refused` (not found, bad request)."""
        if is_id(reference):
            found = await self._by_id(self._kind(kind), reference, position)
            if found is not None:
                return Past(self._log.node, position, tuple(self._log.kinds), {}).view(kind, found)
        past, aggregate = await self._meant(kind, reference, position)
        return past.view(kind, aggregate)

    async def why(self, kind: str, reference: str, position: int, *, whole: bool) -> Why:
        """Why an object was as it was after an event. Raises `Refused` (not found, bad request)."""
        past, aggregate = await self._meant(kind, reference, position)
        return await explain(self._log, past, self._kind(kind), aggregate, whole=whole)

    async def changes(self, after: int, until: int, wanted: Wanted) -> Page:
        """What at most `MAX_CHANGES` events after a position changed."""
        until = min(until, after + MAX_CHANGES, await self._log.head())
        changes = await self._log.changes(after, until, self._tenant, wanted) if until > after else []
        return Page(after, max(after, until), changes)

    async def density(self, after: int, until: int, columns: int) -> Density:
        """How many events of a span there were in each of so many columns."""
        begun, ended = await self._times(after, until)
        exact = until - after <= EXACT_EVENTS
        marks = [begun + (ended - begun) * number // columns for number in range(columns)]
        edges = [after]
        for found in await self._log.positions_of([mark - 1 for mark in marks[1:]]):
            found = min(max(found, edges[-1]), until)
            edges.append(found if exact else max(found - found % MILESTONE_EVENTS, edges[-1]))
        edges.append(until)
        counts = await self._log.counts_of(edges)
        told = [
            Column(
                edges[number],
                edges[number + 1],
                to_rfc3339(marks[number]),
                later.asked - counts[number].asked,
                later.happened - counts[number].happened,
                later.failed - counts[number].failed,
            )
            for number, later in enumerate(counts[1:])
        ]
        return Density(after, until, exact, told)

    async def _times(self, after: int, until: int) -> tuple[int, int]:
        """The times of the first and the last event of a span, in microseconds since 1970."""
        first, last = await self._log.event(after + 1), await self._log.event(until)
        begun = 0 if first is None else first.time_us
        return begun, max(begun, 0 if last is None else last.time_us) + 1

    async def _meant(self, kind: str, reference: str, position: int) -> tuple[Past, Aggregate[Any]]:
        """An object that is there; else one that is deleted, with all that is: that takes longer."""
        try:
            past = await self._log.state_at(position, deleted=False)
            return past, past.find(kind, self._tenant, reference)
        except Refused as missing:
            if missing.reason is not Reason.NOT_FOUND:
                raise
        past = await self._log.state_at(position)
        return past, past.find(kind, self._tenant, reference)

    async def _by_id(self, kind: Kind[Any], aggregate_id: str, position: int) -> Aggregate[Any] | None:
        """An object from its own stream, which takes the same time whatever the log's length."""
        stream = await self._log.stream(stream_name(kind.name, aggregate_id))
        upto = stream[: bisect_right(stream, position, key=lambda each: each.seq)]
        if not upto or upto[0].tenant != self._tenant:
            return None
        return advance_by(kind, None, upto, aggregate_id)

    async def _time_of(self, position: int) -> str:
        event = await self._log.event(position)
        return "" if event is None else to_rfc3339(event.time_us)

    def _kind(self, name: str) -> Kind[Any]:
        return next(kind for kind in self._log.kinds if kind.name == name)
