"""Sealed events: rows of the log that `log archive` has moved into compressed segments of the same file. Reads only.

A segment holds whole commits. Its rows are as they stood in `events`, so that a reader need not know where they came
from; a log without segments answers as if there were none.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.eventstore.clock import Around, around
from aetherscale.eventstore.sqlite.connection import verify_hint
from aetherscale.eventstore.store import Damaged

SEALED_VERSION: Final = 2
"""Of the schema of a log that has segments; see `segments.sql`."""

LEVEL: Final = 6
"""Of zlib; see docs/decisions/0030-old-events-are-sealed-in-the-same-file.md."""

Row = tuple[int, int, int, int, bytes, int, str, str, str, str, str | None]
"""seq, stream_id, version, type_id, data, time_us, tenant, actor, command_id, correlation_id, causation_id."""

SEQ: Final = 0
STREAM: Final = 1
VERSION: Final = 2
TYPE: Final = 3
TIME: Final = 5

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Row])


def pack(rows: Sequence[Row]) -> bytes:
    """Rows as they stand in a segment."""
    return zlib.compress(_encoder.encode(rows), LEVEL)


def unpack(data: bytes) -> list[Row]:
    """The inverse of `pack`. Raises ValueError for what it has not made."""
    try:
        return _decoder.decode(zlib.decompress(data))
    except (zlib.error, msgspec.MsgspecError) as broken:
        raise ValueError(str(broken)) from broken


class Segments:
    """The segments of a log, through a connection that may be read-only."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._unpacked: tuple[int, list[Row]] = (0, [])
        """The segment that was unpacked last: its first event, its rows."""

    def last_seq(self) -> int:
        """Up to which event the log is sealed; 0 where it is not. Raises sqlite3.Error."""
        if not self._are_there():
            return 0
        last = self._connection.execute("SELECT max(last_seq) FROM segments").fetchone()[0]
        return self._number(last or 0)

    def size(self) -> tuple[int, int]:
        """How many segments there are, and the bytes in them."""
        if not self._are_there():
            return 0, 0
        count, size_bytes = self._connection.execute("SELECT count(*), sum(length(data)) FROM segments").fetchone()
        return count, size_bytes or 0

    def rows_after(self, after: int) -> Generator[list[Row], None, None]:
        """The sealed rows after a position, in order, segment by segment. To be closed before the connection.

        Raises `Damaged` for a segment that is not as it was written, and sqlite3.Error.
        """
        if not self._are_there():
            return
        sql = "SELECT first_seq, last_seq FROM segments WHERE last_seq > ? ORDER BY first_seq"
        for first_seq, last_seq in self._connection.execute(sql, (after,)):
            rows = self._rows_of(first_seq, last_seq)
            yield rows[after - first_seq + 1 :] if after >= first_seq else rows

    def page(self, after: int, limit: int, types: Collection[int] | None) -> list[Row]:
        """At most `limit` of the sealed rows after a position, of the given types only where types are given."""
        page: list[Row] = []
        with closing(self.rows_after(after)) as segments:
            for rows in segments:
                page.extend(rows if types is None else [row for row in rows if row[TYPE] in types])
                if len(page) >= limit:
                    break
        return page[:limit]

    def rows_of_stream(self, stream_id: int, after_version: int) -> list[Row]:
        """The sealed rows of one stream after a version of it."""
        if not self._are_there():
            return []
        sql = (
            "SELECT first_seq, last_seq FROM segments JOIN segment_streams USING (first_seq)"
            " WHERE stream_id = ? AND version > ? ORDER BY version"
        )
        return [
            row
            for segment in self._connection.execute(sql, (stream_id, after_version)).fetchall()
            for row in self._rows_of(*segment)
            if row[STREAM] == stream_id and row[VERSION] > after_version
        ]

    def version_of(self, stream_id: int) -> int:
        """The version that a stream had reached when it was sealed last; 0 where nothing of it is sealed."""
        if not self._are_there():
            return 0
        sql = "SELECT max(version) FROM segment_streams WHERE stream_id = ?"
        version = self._connection.execute(sql, (stream_id,)).fetchone()[0]
        return self._number(version or 0)

    def around(self, time_us: int) -> Around:
        """The position of a moment among the sealed events. Unpacks segments up to the first that has a later event."""
        found = Around()
        with closing(self.rows_after(0)) as segments:
            for rows in segments:
                found = around(((row[SEQ], row[TIME]) for row in rows), time_us, found)
                if found.later is not None:
                    break
        return found

    def time_us_of(self, seq: int) -> int | None:
        """When a sealed event was recorded; None where there is none of that number."""
        for rows in self.rows_after(seq - 1):
            return rows[0][TIME] if rows[0][SEQ] == seq else None
        return None

    def faults(self) -> list[str]:
        """The first fault in the indexes of the segments: the streams, the least time.

        The hash chain is over the events alone. Raises `Damaged`, sqlite3.Error.
        """
        if not self._are_there():
            return []
        sql = "SELECT first_seq, stream_id, version FROM segment_streams ORDER BY first_seq, stream_id"
        with closing(self._streams()) as streams:
            for sealed, found in zip_longest(streams, self._connection.execute(sql)):
                if sealed != found:
                    return [f"a stream of a segment is {sealed} (segment, stream, version), and found as {found}"]
        sql = "SELECT first_seq, last_seq, least_us FROM segments"
        for first_seq, last_seq, least_us in self._connection.execute(sql):
            if min(row[TIME] for row in self._rows_of(first_seq, last_seq)) != least_us:
                return [f"the segment of events {first_seq} to {last_seq} has another least time than {least_us!r:.40}"]
        return []

    def _streams(self) -> Generator[tuple[int, int, int], None, None]:
        """The rows that `segment_streams` has to have, in the order of the segments and then of the streams."""
        with closing(self.rows_after(0)) as segments:
            for rows in segments:
                versions = {row[STREAM]: row[VERSION] for row in rows}
                yield from ((rows[0][SEQ], *stream) for stream in sorted(versions.items()))

    def _are_there(self) -> bool:
        version: int = self._connection.execute("PRAGMA user_version").fetchone()[0]
        return version >= SEALED_VERSION

    def _rows_of(self, first_seq: int, last_seq: int) -> list[Row]:
        """The rows of one segment. The last one is remembered: pages end within segments."""
        for number in (first_seq, last_seq):
            self._number(number)
        if first_seq == self._unpacked[0]:
            return self._unpacked[1]
        sql = "SELECT data FROM segments WHERE first_seq = ?"
        found = self._connection.execute(sql, (first_seq,)).fetchone()
        if found is None or type(found[0]) is not bytes:
            raise self._damaged(first_seq, last_seq, "it has no content")
        try:
            rows = unpack(found[0])
        except ValueError as broken:
            raise self._damaged(first_seq, last_seq, str(broken)) from broken
        if first_seq + len(rows) != last_seq + 1 or any(seq != row[SEQ] for seq, row in enumerate(rows, first_seq)):
            raise self._damaged(first_seq, last_seq, "it has other events")
        self._unpacked = (first_seq, rows)
        return rows

    def _number(self, value: int) -> int:
        """A number of a row, which one flipped bit makes a text of. Raises `Damaged`."""
        if type(value) is not int:
            raise Damaged(f"{self._path}: the log is damaged: a segment has {value!r:.200}; {verify_hint(self._path)}")
        return value

    def _damaged(self, first_seq: int, last_seq: int, what: str) -> Damaged:
        return Damaged(
            f"{self._path}: log damaged at {first_seq}: the segment of events {first_seq} to {last_seq} is not as it "
            f"was sealed: {what}; {verify_hint(self._path)}",
            first_seq,
        )
