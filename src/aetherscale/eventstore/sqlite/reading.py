"""Rows of the log as events. Synchronous, on one connection that may be read-only; does not write."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from aetherscale.eventstore.chain import EMPTY, Head, StoredCommand
from aetherscale.eventstore.clock import Around, around
from aetherscale.eventstore.sqlite.connection import SQLITE_ERRORS, connect_read_only, translated, verify_hint
from aetherscale.eventstore.sqlite.segments import SEALED_VERSION, SEQ, VERSION, Row, Segments
from aetherscale.eventstore.store import (
    AS_STORED,
    PAGE,
    Accepted,
    Damaged,
    Decoding,
    NotALog,
    StoredEvent,
    StoredType,
    TooNew,
    undecodable,
)

T = TypeVar("T")

APPLICATION_ID: Final = 0x41534556
"""`ASEV` in bytes 68 to 71 of the file says that it is one of ours (https://sqlite.org/fileformat.html)."""

SCHEMA_VERSION: Final = 1
"""Of `schema.sql`, kept as SQLite's user version. A log that was archived has `SEALED_VERSION`."""

KNOWN_STREAMS: Final = 100_000
"""How many names of streams are remembered: joining them row by row costs twice as much as the rest of a row."""

_EVENTS: Final = (
    "SELECT seq, stream_id, version, type_id, data, time_us, tenant, actor, command_id, correlation_id, causation_id"
    " FROM events"
)


class Epoch(Struct, frozen=True):
    """The recorder of the events from `first_seq` on."""

    first_seq: int
    node: str
    epoch: str
    created_us: int


class LogReading:
    """The queries of a log through one connection. Makes sure first that it is a log that we know.

    The three that are generators have to be closed before the connection, which otherwise stays open unseen.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Raises `NotALog`, `TooNew`, `Damaged`, sqlite3.Error."""
        self._connection = connection
        self._path = path
        self.segments = Segments(connection, path)
        _check_header(connection, path)
        rows = connection.execute("SELECT first_seq, node, epoch, created_us FROM epochs ORDER BY first_seq").fetchall()
        self.epochs = [Epoch(*self._typed(row, int, str, str, int)) for row in rows]
        if not self.epochs or self.epochs[0].first_seq != 1:
            raise Damaged(f"{path}: the log does not name its node; {verify_hint(path)}", 1)
        self._types: dict[int, StoredType] = {}
        self._streams: dict[int, str] = {}
        self._decoders: dict[Decoding[Any], dict[int, Callable[[bytes], Any]]] = {}

    def head(self) -> int:
        """The position of the last event."""
        row = self._connection.execute("SELECT max(seq) FROM events").fetchone()
        return row[0] or 0

    def chain_head(self, batch: int | None = None) -> Head | None:
        """A link of the hash chain; the last one where none is named. None where there is no such link."""
        if batch == 0:
            return EMPTY
        where, parameters = ("number = ?", (batch,)) if batch else ("true ORDER BY number DESC LIMIT 1", ())
        sql = f"SELECT number, last_seq, link FROM batches WHERE {where}"  # noqa: S608 - constants
        row = self._connection.execute(sql, parameters).fetchone()
        return Head(*self._typed(row, int, int, bytes)) if row else None

    def read(self, decoding: Decoding[T], after: int, limit: int, types: Sequence[str] | None = None) -> list[T]:
        """As in `Reading`. Raises sqlite3.Error too."""
        rows = self._page(after, limit, types)
        if types is None and rows and rows[-1][SEQ] - after != len(rows):
            seq = next(seq for seq, row in enumerate(rows, after + 1) if row[SEQ] != seq)
            raise Damaged(f"{self._path}: event {seq} is missing; {verify_hint(self._path)}", seq)
        return self._made(decoding, rows)

    def _page(self, after: int, limit: int, types: Sequence[str] | None) -> list[Row]:
        """Rows of a page: those that are sealed, then those that are not."""
        sealed_to = self.segments.last_seq()
        rows: list[Row] = []
        if after < sealed_to:
            numbers = None if types is None else {n for n, kind in self._all_types().items() if kind.type in types}
            rows = self.segments.page(after, limit, numbers)
        if len(rows) < limit:
            wanted = ""
            if types is not None:
                wanted = f" AND type_id IN (SELECT id FROM types WHERE name IN ({_places(types)}))"  # noqa: S608 - question marks
            sql = f"{_EVENTS} WHERE seq > ?{wanted} ORDER BY seq LIMIT ?"
            parameters = (max(after, sealed_to), *(types or ()), limit - len(rows))
            rows += self._connection.execute(sql, parameters).fetchall()
        if self.segments.last_seq() > sealed_to:  # sealed meanwhile, by another process
            return self._page(after, limit, types)
        return rows

    def read_all(self) -> Generator[StoredEvent, None, None]:
        """Every event in order, as it stands in the file. Raises sqlite3.Error."""
        with closing(self.segments.rows_after(0)) as segments:
            for rows in segments:
                yield from self._made(AS_STORED, rows)
        cursor = self._connection.execute(f"{_EVENTS} WHERE seq > ? ORDER BY seq", (self.segments.last_seq(),))
        while rows := cursor.fetchmany(PAGE):
            yield from self._made(AS_STORED, rows)

    def read_stream(self, decoding: Decoding[T], stream: str, after_version: int = 0) -> list[T]:
        """As in `Reading`. Raises `Damaged` where an event is missing, and sqlite3.Error."""
        number = self._connection.execute("SELECT id FROM streams WHERE name = ?", (stream,)).fetchone()
        if number is None:
            return []
        sql = f"{_EVENTS} WHERE stream_id = ? AND version > ? ORDER BY version"
        rows: list[Row] = self._connection.execute(sql, (*number, after_version)).fetchall()
        if not rows or rows[0][VERSION] > after_version + 1:
            sealed = self.segments.rows_of_stream(number[0], after_version)
            rows = sealed + [row for row in rows if not sealed or row[VERSION] > sealed[-1][VERSION]]
        for version, row in enumerate(rows, after_version + 1):
            if row[VERSION] != version:
                raise Damaged(f"{self._path}: stream {stream}: version {version} is missing; {verify_hint(self._path)}")
        return self._made(decoding, rows)

    def versions(self, streams: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The numbers of streams and the versions they are at; without those that have no events."""
        sql = f"SELECT name, id FROM streams WHERE name IN ({_places(streams)})"  # noqa: S608 - question marks
        found = self._connection.execute(sql, streams).fetchall()
        latest = "SELECT max(version) FROM events WHERE stream_id = ?"
        versions = {number: self._connection.execute(latest, (number,)).fetchone()[0] for _, number in found}
        return {name: (number, versions[number] or self.segments.version_of(number)) for name, number in found}

    def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """The events of a command, if it was accepted."""
        key = command_key(tenant, command_id)
        return self.accepted_of([key]).get(key)

    def accepted_of(self, keys: Sequence[bytes]) -> dict[bytes, Accepted]:
        """The events of commands, by their keys; without those that were not accepted."""
        sql = f"SELECT key, digest, first_seq, last_seq FROM commands WHERE key IN ({_places(keys)})"  # noqa: S608
        rows = [self._typed(row, bytes, bytes, int, int) for row in self._connection.execute(sql, keys).fetchall()]
        return {key: Accepted(*accepted) for key, *accepted in rows}

    def commands(self) -> Generator[tuple[int, StoredCommand], None, None]:
        """Every accepted command with the number of its commit, in the order of commits. Raises sqlite3.Error."""
        sql = "SELECT batch, key, digest, first_seq, last_seq FROM commands ORDER BY batch, key"
        for row in self._connection.execute(sql):
            batch, key, *accepted = self._typed(row, int, bytes, bytes, int, int)
            tenant, _, command_id = key.decode(errors="replace").partition("\0")
            yield batch, StoredCommand(tenant, command_id, Accepted(*accepted))

    def links(self) -> Generator[Head, None, None]:
        """Every link of the hash chain in order. Raises sqlite3.Error."""
        for row in self._connection.execute("SELECT number, last_seq, link FROM batches ORDER BY number"):
            yield Head(*self._typed(row, int, int, bytes))

    def counts(self) -> tuple[int, int, int]:
        """How many streams, accepted commands and commits there are."""
        names = ("streams", "commands", "batches")
        rows = [self._connection.execute(f"SELECT count(*) FROM {name}").fetchone() for name in names]  # noqa: S608
        streams, commands, batches = (row[0] for row in rows)
        return streams, commands, batches

    def time_us_of(self, seq: int) -> int | None:
        """When an event was recorded; None where there is none."""
        row = self._connection.execute("SELECT time_us FROM events WHERE seq = ?", (seq,)).fetchone()
        return row[0] if row else self.segments.time_us_of(seq)

    def faults(self) -> list[str]:
        """The faults that SQLite itself finds in its pages, indexes and references; at most ten of each."""
        found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check(10)").fetchall()]
        faults = [] if found == ["ok"] else found
        for table, row_id, parent, _ in self._connection.execute("PRAGMA foreign_key_check").fetchmany(10):
            faults.append(f"{table} {row_id} refers to a row of {parent} that is not there")
        return faults + self.segments.faults()

    def types(self) -> list[StoredType]:
        """Every type of event that occurs in the log."""
        return list(self._all_types().values())

    def types_by_id(self) -> dict[int, StoredType]:
        """The same, by the number that stands for them in the file."""
        return self._all_types()

    def position_at(self, time_us: int) -> int:
        """The position that a moment means; see `clock.py`."""
        sealed = self.segments.around(time_us)
        if sealed.later is not None:
            return sealed.position
        later = self._connection.execute("SELECT min(seq) FROM events WHERE time_us > ?", (time_us,)).fetchone()[0]
        if later is not None:
            return Around(later).position
        greatest = "SELECT seq, time_us FROM events ORDER BY time_us DESC, seq DESC LIMIT 1"
        return around(self._connection.execute(greatest).fetchall(), time_us, sealed).position

    def _typed(self, row: tuple[Any, ...], *kinds: type) -> tuple[Any, ...]:
        """A row whose values are of the kinds that were written: one flipped bit makes a number of a text."""
        if any(type(value) is not kind for value, kind in zip(row, kinds, strict=True)):
            raise Damaged(f"{self._path}: the log is damaged: a row reads {row!r:.200}; {verify_hint(self._path)}")
        return row

    def _made(self, decoding: Decoding[T], rows: Sequence[Row]) -> list[T]:
        record, streams, decoders = decoding.record, self._streams, self._decoders.setdefault(decoding, {})
        node, epoch, begins, ends = "", "", 0, 0
        made: list[T] = []
        seq, type_id = 0, 0
        try:
            for (
                seq, stream_id, version, type_id, data, time_us, tenant, actor, command_id, correlation_id, causation_id
            ) in rows:  # fmt: skip
                if not begins <= seq < ends:
                    node, epoch, begins, ends = self._epoch_of(seq)
                made.append(
                    record(
                        seq,
                        streams.get(stream_id) or self._stream(stream_id, seq),
                        version,
                        time_us,
                        node,
                        epoch,
                        tenant,
                        actor,
                        command_id,
                        correlation_id,
                        causation_id,
                        (decoders.get(type_id) or self._decoder(decoding, type_id, seq))(data),
                    )
                )
        except msgspec.MsgspecError as broken:
            raise undecodable(seq, self._types[type_id].type, broken) from None
        return made

    def _epoch_of(self, seq: int) -> tuple[str, str, int, int]:
        """The node and the epoch of an event, and from which event to which later one it is them."""
        ends = sys.maxsize
        for one in reversed(self.epochs):
            if one.first_seq <= seq:
                break
            ends = one.first_seq
        return one.node, one.epoch, one.first_seq, ends

    def _stream(self, stream_id: int, seq: int) -> str:
        """The name of a stream that is not remembered."""
        row = self._connection.execute("SELECT name FROM streams WHERE id = ?", (stream_id,)).fetchone()
        if row is None:
            raise Damaged(f"{self._path}: event {seq} has no stream; {verify_hint(self._path)}", seq)
        if len(self._streams) >= KNOWN_STREAMS:
            self._streams.clear()
        self._streams[stream_id] = row[0]
        name: str = row[0]
        return name

    def _decoder(self, decoding: Decoding[T], type_id: int, seq: int) -> Callable[[bytes], Any]:
        """The decoder of the payloads of a type whose number is new: the node may have gone on writing."""
        kind = self._types.get(type_id) or self._all_types().get(type_id)
        if kind is None:
            raise Damaged(f"{self._path}: event {seq} has no type; {verify_hint(self._path)}", seq)
        decoder = self._decoders[decoding][type_id] = decoding.payload(seq, kind.type, kind.schema)
        return decoder

    def _all_types(self) -> dict[int, StoredType]:
        rows = self._connection.execute("SELECT id, name, schema, written_by FROM types ORDER BY id").fetchall()
        self._types = {row[0]: StoredType(*self._typed(row, int, str, int, str)[1:]) for row in rows}
        return self._types


@contextmanager
def snapshot(path: Path) -> Iterator[LogReading]:
    """A log as it is at one moment, beside a running node too. Raises `StoreError`."""
    with closing(connect_read_only(path)) as connection:
        try:
            with at_one_moment(connection):
                yield LogReading(connection, path)
        except SQLITE_ERRORS as error:
            raise translated(error, path) from error


@contextmanager
def at_one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """Whatever is read in the block is of one moment, however much is committed meanwhile. Raises sqlite3.Error."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def command_key(tenant: str, command_id: str) -> bytes:
    """The key of a command in the file; a tenant has no NUL in it."""
    return f"{tenant}\0{command_id}".encode()


def _places(values: Sequence[object]) -> str:
    """As many question marks."""
    return ",".join("?" * len(values))


def _check_header(connection: sqlite3.Connection, path: Path) -> None:
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != APPLICATION_ID:
        raise NotALog(f"{path}: this is an SQLite file, but not an event log of aetherscale; it is left as it is")
    if version > SEALED_VERSION:
        raise TooNew(
            f"{path}: the log has schema {version}, this version of aetherscale knows up to {SEALED_VERSION}; "
            f"install the version that wrote it, or a newer one"
        )
    if version < 1:
        raise Damaged(f"{path}: the log says that it has schema {version}; {verify_hint(path)}")
