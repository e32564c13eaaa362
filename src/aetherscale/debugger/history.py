"""Any moment of the past: from the nearest keyframe before it, which is made where it is missing. Synchronous.

Keyframes (`keyframes.py`) are made by the command that asks about a moment beyond the last one, and kept beside the
log. They are used where they are of this shape of the state, and where the log still has the commit that they were made
of.

For a thread (`HistoryThread`) or a process of its own: nothing here waits for anything but the disk.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from aetherscale.debugger.folding import Counting, Departed, Fold, Passing
from aetherscale.debugger.keyframes import (
    DEPARTED,
    LIVING,
    MILESTONES,
    Counts,
    Milestone,
    Packing,
    Registries,
    Spacing,
    fingerprint,
)
from aetherscale.eventstore.clock import Around, around
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.garbage import unsearched
from aetherscale.eventstore.projections import FOLD_PAGE
from aetherscale.eventstore.sqlite.connection import Connection, connect_read_only
from aetherscale.eventstore.sqlite.past import PAST_NAME, Anchor, Belongs, KeyframeFile, open_keyframes
from aetherscale.eventstore.sqlite.reading import LogReading
from aetherscale.eventstore.store import Closed, Decoding
from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.registry import Kind, Registry, event_types

T = TypeVar("T")

TOLD_KEYFRAMES: Final = 16
"""A fill is told of where it makes at least as many keyframes, some 0.4 s of work, and then after each as many."""

LATER_KEYFRAMES: Final = 2
"""The events of as many after the last one are looked through for a moment; where there are more, SQLite does it."""

_TIMES: Final[Decoding[tuple[int, int]]] = Decoding(
    lambda seq, stream, version, time_us, *others: (seq, time_us), lambda seq, name, schema: bool, lambda types: None
)
"""Events as their positions and times: their payloads are not decoded."""

Report = Callable[[int, int], None]
"""Told how many events are folded by now, and how many will be."""


class Stopped(Exception):
    """The caller does not wait for the answer any more."""


class _Unusable(Exception):
    """A part of a keyframe is missing, damaged, or of another log."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class History:
    """What a log says about its past, from the nearest keyframe on."""

    def __init__(
        self,
        reading: LogReading,
        keyframes: Callable[[Belongs], KeyframeFile],
        kinds: Sequence[Kind[Any]],
        report: Report = lambda done, total: None,
        spacing: Spacing = Spacing(),  # noqa: B008 - immutable
    ) -> None:
        self._reading = reading
        self._spacing, self._every = spacing, spacing.keyframe
        self._kinds = {kind.name: kind for kind in kinds}
        self._decoding = Codec(event_types(tuple(kinds))).decoding
        self._keyframes = keyframes(Belongs(fingerprint(kinds, spacing), reading.epochs[-1].epoch))
        self._packing = Packing(kinds)
        self._report = report
        self._stopped = threading.Event()
        self._looked_up: dict[int, list[Milestone]] = {}
        """The milestones before each keyframe, as far as the question that is being answered has looked at them."""

    def state_at(self, position: int, *, deleted: bool = True) -> Registries:
        """The registries after the event at `position`, with or without what is deleted by then.

        They are what a fold from the first event gives, but for the versions of streams of names and uses, and without
        names that are free. Raises `StoreError`, sqlite3.Error, `Stopped`.
        """
        with unsearched():
            return self._trying(lambda: self._state_at(position, deleted=deleted))

    def position_at(self, time_us: int) -> int:
        """The position that a moment means; see `eventstore/clock.py`. Raises `StoreError`, sqlite3.Error."""
        return self.positions_at([time_us])[0]

    def positions_at(self, times_us: Sequence[int]) -> list[int]:
        """The same of several moments, for which milestones are looked up once. Raises as `position_at`."""
        return self._trying(lambda: [self._position_at(time_us) for time_us in times_us])

    def counts_of(self, positions: Sequence[int]) -> list[Counts]:
        """The counts up to each of some positions, which ascend: a look-up for each that has a milestone, for others a
        fold from the keyframe before. Raises `StoreError`, sqlite3.Error, `Stopped`.
        """
        with unsearched():
            return self._trying(lambda: self._counts_of(positions))

    def passing(self, after: int, until: int, tell: Callable[[Passing], T | None]) -> list[T]:
        """What is told of the events of a span, without None. Raises `StoreError`, sqlite3.Error, `Stopped`."""
        with unsearched():
            return self._trying(lambda: self._passing(after, until, tell))

    def stop(self) -> None:
        """No caller waits for an answer any more, so none is worked on: for other threads."""
        self._stopped.set()

    def close(self) -> None:
        """Let go of the keyframes; idempotent."""
        self._keyframes.close()

    # --- questions -----------------------------------------------------------------------------------------------

    def _trying(self, question: Callable[[], T]) -> T:
        """An answer; what turns out to be unusable on the way to it is dropped, and made anew."""
        dropped = -1
        while True:
            self._looked_up.clear()
            try:
                return question()
            except _Unusable as found:
                if 0 <= dropped <= found.position:  # it was not to be dropped, or somebody puts it back
                    self._keyframes.discard()
                else:
                    self._keyframes.drop(found.position)
                dropped = found.position

    def _state_at(self, position: int, *, deleted: bool) -> Registries:
        fold = self._folded(min(position, self._reading.head()), deleted=deleted)
        fold.depart()
        for name, departed in (fold.departed or {}).items():
            fold.registries[name].aggregates = departed | fold.registries[name].aggregates
        for registry in fold.registries.values():
            registry.position = position
        return fold.registries

    def _position_at(self, time_us: int) -> int:
        head = self._reading.head()
        last = self._keyframes.last(head)
        ends = range(self._every, last + 1, self._every)
        number = bisect_right(ends, time_us, key=lambda end: self._milestone(end).greatest_us)
        if number == len(ends) and head - last > LATER_KEYFRAMES * self._every:
            return self._reading.position_at(time_us)
        after = number * self._every
        if number < len(ends):
            within = range(after + self._spacing.milestone, ends[number] + 1, self._spacing.milestone)
            after += self._spacing.milestone * bisect_right(
                within, time_us, key=lambda position: self._milestone(position).greatest_us
            )
        known = self._milestone(after)
        found = Around(None, known.greatest_us, known.latest)
        page = self._spacing.milestone if number < len(ends) else self._every
        while found.later is None and after < head:
            found = around(self._reading.read(_TIMES, after, page), time_us, found)
            after += page
        return found.position

    def _counts_of(self, positions: Sequence[int]) -> list[Counts]:
        found, step = dict[int, Counts](), self._spacing.milestone
        self._fill(max(positions, default=0))
        last = self._keyframes.last(self._reading.head())
        rest: dict[int, list[int]] = {}
        for position in positions:
            if position % step == 0 and position <= last:
                found[position] = self._milestone(position).counts
            else:
                rest.setdefault(position - position % self._every, []).append(position)
        for begin, within in rest.items():
            fold, counting = self._folded(begin, deleted=False), Counting(self._milestone(begin))
            for position in within:
                fold.run_counting(self._events(fold.position, position), counting)
                found[position] = counting.milestone.counts
        return [found[position] for position in positions]

    def _fill(self, until: int) -> None:
        """Have every keyframe up to a position."""
        wanted = until - until % self._every
        if self._keyframes.last(until) < wanted:
            self._folded(wanted, deleted=False)

    def _passing(self, after: int, until: int, tell: Callable[[Passing], T | None]) -> list[T]:
        fold = self._folded(after, deleted=False)
        until = min(until, self._reading.head())
        told = (tell(each) for each in fold.passing(self._events(after, until)))
        return [each for each in told if each is not None]

    # --- the fold, and keyframes on its way ----------------------------------------------------------------------

    def _folded(self, until: int, *, deleted: bool) -> Fold:
        """Everything folded up to a position; the keyframes that are missing on the way are made."""
        begin, missing = self._keyframes.last(until), until - until % self._every
        fold = self._begun(begin, deleted=deleted)
        if fold.position < missing:
            counting = Counting(self._milestone(begin))
            told = TOLD_KEYFRAMES * self._every
            is_told = missing - begin >= told
            while fold.position < missing:
                if is_told and (fold.position - begin) % told == 0:
                    self._report(fold.position - begin, missing - begin)
                self._make_next(fold, counting)
            if is_told:
                self._report(missing - begin, missing - begin)
        for after in range(fold.position, until, FOLD_PAGE):
            fold.run(self._events(after, min(until, after + FOLD_PAGE)))
        return fold

    def _begun(self, position: int, *, deleted: bool) -> Fold:
        """The fold as it stands at a keyframe, or before the first event."""
        registries: Registries = {name: Registry() for name in self._kinds}
        departed: Departed | None = {name: {} for name in self._kinds} if deleted else None
        if position:
            registries = self._part(LIVING, position, self._packing.living)
        if departed is not None:
            for end in range(self._every, position + 1, self._every):
                for name, aggregates in self._part(DEPARTED, end, self._packing.departed).items():
                    departed[name].update((aggregate.id, aggregate) for aggregate in aggregates)
        return Fold(position, self._kinds, registries, departed, self._stream)

    def _make_next(self, fold: Fold, counting: Counting) -> None:
        """Fold up to the next keyframe, and keep it."""
        end = fold.position + self._every
        events, milestones = self._events(fold.position, end), []
        for at in range(0, self._every, self._spacing.milestone):
            fold.run_counting(events[at : at + self._spacing.milestone], counting)
            milestones.append(counting.milestone)
        gone = fold.depart()
        parts = {
            LIVING: self._packing.pack(fold.registries),
            DEPARTED: self._packing.pack(gone),
            MILESTONES: self._packing.pack(milestones),
        }
        self._keyframes.save(self._anchor(end), parts)

    def _events(self, after: int, until: int) -> list[Recorded]:
        if self._stopped.is_set():
            raise Stopped
        return self._reading.read(self._decoding, after, until - after) if until > after else []

    def _stream(self, name: str, before: int) -> list[Recorded]:
        """The events of a stream before a version."""
        return [each for each in self._reading.read_stream(self._decoding, name) if each.version < before]

    # --- what is kept --------------------------------------------------------------------------------------------

    def _milestone(self, position: int) -> Milestone:
        """One that stands at a position up to the last keyframe. Raises `_Unusable`."""
        if position == 0:
            return Milestone()
        number = (position - 1) // self._every
        milestones = self._looked_up.get(number)
        if milestones is None:
            milestones = self._part(MILESTONES, (number + 1) * self._every, self._packing.milestones)
            self._looked_up[number] = milestones
        return milestones[(position - number * self._every) // self._spacing.milestone - 1]

    def _part(self, name: str, position: int, unpack: Callable[[bytes], T]) -> T:
        """A part of the keyframe at a position. Raises `_Unusable`."""
        part = self._keyframes.read(name, position)
        if part is None:
            raise _Unusable(position)
        commit = self._reading.chain_head(part.anchor.batch)
        if commit is None or commit.link != part.anchor.link:
            raise _Unusable(position)
        try:
            return unpack(part.data)
        except (zlib.error, msgspec.MsgspecError):
            raise _Unusable(position) from None

    def _anchor(self, position: int) -> Anchor:
        """The commit that holds an event: the first one that ends there or later."""
        last = self._reading.chain_head()
        assert last is not None, "an event without a commit"
        batch = bisect_right(range(1, last.batch + 1), position - 1, key=self._end_of) + 1
        link = self._reading.chain_head(batch)
        assert link is not None, f"no commit {batch}"
        return Anchor(position, batch, link.link)

    def _end_of(self, batch: int) -> int:
        link = self._reading.chain_head(batch)
        return link.seq if link is not None else 0


class HistoryThread:
    """The `History` of a log in a thread of its own, which begins with the first question."""

    def __init__(self, path: Path, kinds: Sequence[Kind[Any]], report: Report) -> None:
        self._path, self._kinds, self._report = path, kinds, report
        self._opening = asyncio.Lock()
        self._connection: Connection | None = None
        self._history: History | None = None
        self._is_closing = False

    async def ask(self, question: Callable[[History], T]) -> T:
        """The answer of a function that is given the history. Raises what it raises, `StoreError`, OSError."""
        async with self._opening:
            if self._connection is None:
                self._connection = await Connection.open(lambda: connect_read_only(self._path), self._path)
        connection = self._connection
        return await connection.run(lambda: question(self._opened(connection)))

    async def close(self) -> None:
        """Stop what is under way, and let go of everything; idempotent."""
        self._is_closing = True
        if self._history is not None:
            self._history.stop()
        if self._connection is not None:
            with suppress(Closed):
                await self._connection.run(self._close)
            await self._connection.close()

    def _opened(self, connection: Connection) -> History:
        if self._history is None:
            path = self._path.with_name(PAST_NAME)
            self._history = History(
                LogReading(connection.plain, self._path),
                lambda belongs: open_keyframes(path, belongs),
                self._kinds,
                self._report,
            )
        if self._is_closing:  # the caller has gone while it was being opened
            self._history.stop()
        return self._history

    def _close(self) -> None:
        if self._history is not None:
            self._history.close()
