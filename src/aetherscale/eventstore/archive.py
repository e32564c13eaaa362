"""Sealing old events: they leave the table of events for compressed segments of the same file, and are read as before.

    prove the log ─▶ some segments at a time: read, pack, unpack and compare, insert, delete ─▶ give the room back
                     └───────────────── one transaction ─────────────────┘

Whatever ends it in between leaves a whole log, of which a part is sealed. It needs the log to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale.eventstore.integrity import prove
from aetherscale.eventstore.sqlite.files import Lock
from aetherscale.eventstore.sqlite.opening import connect_for_writing
from aetherscale.eventstore.sqlite.reading import LogReading, snapshot
from aetherscale.eventstore.sqlite.sealing import reading_of, reclaim, seal

SEGMENT_EVENTS: Final = 1000
"""The least that is sealed: a segment ends with the commit in which it gets as many."""
SEGMENTS_AT_ONCE: Final = 50
"""Of one transaction, so that the write-ahead log stays small."""
KEPT_EVENTS: Final = 100_000
"""How many of the newest events are not sealed by default: nearly all reads are of them."""


class Archived(Struct, frozen=True, rename="kebab"):
    """The result of sealing: bytes of the database before and after.

    `sealed_to` is the last event that is sealed now, 0 for none. Where `reclaimed` is false there was no room to make
    the file smaller: the room in it is used by later events.
    """

    events: int
    segments: int
    sealed_to: int
    before_bytes: int
    after_bytes: int
    reclaimed: bool = True


Until = Callable[[LogReading], int]
"""Up to which event a log is to be sealed."""
Report = Callable[[int, int], None]
"""Called with how many events are sealed by now, and how many will be."""


def archive(
    path: Path,
    until: Until,
    report: Report = lambda done, total: None,
    *,
    segment_events: int = SEGMENT_EVENTS,
) -> Archived:
    """Seal whole segments of the events up to a position. Synchronous: some seconds for each million events.

    The last commit is never sealed. Raises `Locked` beside a running node, `Damaged` where the log is not as it was
    written, `StorageFull`, `NotALog`, `TooNew`, OSError.
    """
    with snapshot(path):
        pass  # that it is a log is said before there is a lock of it
    lock = Lock(path.with_suffix(".lock"))
    try:
        prove(path)
        before_bytes = _size_bytes(path)
        with closing(connect_for_writing(path)) as connection:
            reading = reading_of(connection, path)
            first = sealed = reading.segments.last_seq()
            ends = _ends(reading, first, until(reading), segment_events)
            segments = len(ends)
            while ends:
                part, ends = ends[:SEGMENTS_AT_ONCE], ends[SEGMENTS_AT_ONCE:]
                seal(connection, path, sealed, part)
                sealed = part[-1]
                report(sealed - first, (ends or part)[-1] - first)
            reclaimed = sealed == first or reclaim(connection, path)
        return Archived(sealed - first, segments, sealed, before_bytes, _size_bytes(path), reclaimed)
    finally:
        lock.release()


def preview(path: Path, until: Until) -> Archived:
    """The events that `archive` would seal; changes nothing, and cannot say how much it would save. Raises
    `StoreError`, OSError.
    """
    size_bytes = _size_bytes(path)
    with snapshot(path) as reading:
        first = reading.segments.last_seq()
        ends = _ends(reading, first, until(reading), SEGMENT_EVENTS)
    sealed = ends[-1] if ends else first
    return Archived(sealed - first, len(ends), sealed, size_bytes, size_bytes)


def _ends(reading: LogReading, begin: int, until: int, segment_events: int) -> list[int]:
    limit, ends = min(until, reading.head() - 1), list[int]()
    with closing(reading.links()) as links:
        for link in links:
            if link.seq > limit:
                break
            if link.seq - begin >= segment_events:
                begin = link.seq
                ends.append(begin)
    return ends


def _size_bytes(path: Path) -> int:
    wal = path.with_name(f"{path.name}-wal")
    return path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
