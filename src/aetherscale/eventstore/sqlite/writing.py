"""Batches into rows: one transaction for each, in the thread of the one connection that writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import astuple

from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.chain import EMPTY, StoredCommand, next_head
from aetherscale.eventstore.plan import Plan, plan
from aetherscale.eventstore.sqlite.connection import RESTART, SQLITE_ERRORS, full, translated
from aetherscale.eventstore.sqlite.files import HeadFile, Reserve
from aetherscale.eventstore.sqlite.opening import insert_epochs
from aetherscale.eventstore.sqlite.reading import Epoch, LogReading, command_key
from aetherscale.eventstore.sqlite.walroom import WalRoom
from aetherscale.eventstore.store import Accepted, Append, InDoubt, StorageFull, StoredEvent, StoredType

Restored = tuple[Sequence[StoredEvent], Sequence[StoredCommand], bytes | None]
"""A commit of another log: its events, its commands, and the link of the chain that it leads to, if that is known."""


class LogWriting:
    """The one that writes. It remembers where the streams are; the file is asked once for each stream."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, program: str, head_file: HeadFile, reserve: Reserve | None
    ) -> None:
        """`program` is the version of the program that writes, recorded with each new type of event."""
        self._connection = connection
        self._path = path
        self._program = program
        self._head_file = head_file
        self._reserve = reserve
        self._reading = LogReading(connection, path)
        self.node = self._reading.epochs[-1].node
        self.epoch = self._reading.epochs[-1].epoch
        self._accepted: dict[bytes, Accepted] = {}
        self._forgotten = False
        self._room = WalRoom(path)
        self._recall()

    def version(self, stream: str) -> int:
        """Where a stream is that was looked up; as in `plan.Known`."""
        known = self._streams.get(stream)
        return known[1] if known else 0

    def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """The events of a command that was looked up; as in `plan.Known`."""
        return self._accepted.get(command_key(tenant, command_id))

    def commit(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        """As in `Backend`.

        On a full disk the reserve is for urgent appends: it is spent for the first that finds no other room, and from
        then on the others are refused until it could be filled again.
        """
        urgent = all(append.urgent for append in appends)
        reserve = self._reserve
        if reserve is not None and reserve.spent and not reserve.refill() and not urgent:
            raise full(self._path)
        try:
            return self._commit(appends)
        except StorageFull:
            if not urgent or reserve is None or not reserve.spend():
                raise
            return self._commit(appends)

    def restore(self, commits: Sequence[Restored]) -> None:
        """Write what another log held, commit by commit, as it was: the next positions and versions.

        Raises ValueError where it does not follow what is in the log, `StorageFull`, `InDoubt`.
        """
        with self._transaction():
            self._look_up_streams({event.stream for events, _, _ in commits for event in events})
            for events, commands, link in commits:
                planned = Plan(events=list(events))
                planned.commands = {(command.tenant, command.command_id): command.accepted for command in commands}
                self._require_next(events)
                self._insert(planned)
                if link not in (None, self.head.link):
                    raise ValueError(f"the log up to event {self.head.seq} has another hash than the line says")
        self._write_head()

    def _require_next(self, events: Sequence[StoredEvent]) -> None:
        versions: dict[str, int] = {}
        for seq, event in enumerate(events, self.head.seq + 1):
            version = versions.get(event.stream, self.version(event.stream)) + 1
            if (event.seq, event.version) != (seq, version):
                raise ValueError(
                    f"event {event.seq}, version {event.version} of {event.stream}: expected event {seq}, "
                    f"version {version}"
                )
            versions[event.stream] = version

    def restore_types(self, types: Sequence[StoredType]) -> None:
        """Remember which version of the program was the first to write each type of event."""
        with self._transaction():
            rows = [(number, *astuple(kind)) for number, kind in enumerate(types, 1)]
            self._connection.executemany("INSERT INTO types (id, name, schema, written_by) VALUES (?, ?, ?, ?)", rows)
        self._recall()

    def begin_epoch(self, epoch: Epoch) -> None:
        """Say who records what comes from now on."""
        with self._transaction():
            insert_epochs(self._connection, [epoch])

    def close(self) -> None:
        """Close the head file."""
        self._head_file.close()

    def sync_head(self) -> None:
        """Make the head file durable; as in `Backend`."""
        try:
            self._head_file.sync()
        except OSError as error:
            raise self._in_doubt("the head of the log could not be synced", error) from error

    def make_room(self) -> None:
        """Make room for the next commits, so that they make no file grow."""
        try:
            self._room.make()
        except OSError as error:
            raise self._in_doubt("the write-ahead log could not be synced", error) from error

    def _commit(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        with self._transaction():
            self._look_up_streams({write.stream for append in appends for write in append.writes})
            keys = [command_key(append.key.tenant, append.key.command_id) for append in appends if append.key]
            self._accepted = self._reading.accepted_of(keys) if keys else {}
            planned = plan(appends, self, self.head.seq, self.node, self.epoch)
            self._insert(planned)
        self._write_head()
        return planned.outcomes

    def _look_up_streams(self, streams: Set[str]) -> None:
        """Remember where streams are; those that are new to the file are not among them."""
        unknown = [stream for stream in streams if stream not in self._streams]
        if unknown:
            self._streams.update(self._reading.versions(unknown))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, in the file and in what is remembered of it.

        What is looked up is looked up inside, which spares the locks of a transaction for each statement.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if self._forgotten:
                self._recall()
            self._forgotten = True
            yield
            self._connection.execute("COMMIT")
            self._forgotten = False
        except SQLITE_ERRORS as error:
            raise translated(error, self._path, committing=True) from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _recall(self) -> None:
        """Read what is remembered: the end of the log and the numbers that stand for names."""
        self.head = self._reading.chain_head() or EMPTY
        self._streams: dict[str, tuple[int, int]] = {}
        self._stream_count: int = self._connection.execute("SELECT coalesce(max(id), 0) FROM streams").fetchone()[0]
        self._types = {(kind.type, kind.schema): number for number, kind in self._reading.types_by_id().items()}
        self._forgotten = False

    def _insert(self, planned: Plan) -> None:
        """The rows of a batch."""
        if not planned.events and not planned.commands:
            return
        commands = [StoredCommand(*key, accepted) for key, accepted in planned.commands.items()]
        self.head = next_head(self.head, planned.events, commands)
        self._insert_names(planned)
        insert = self._connection.executemany
        streams, types = self._streams, self._types
        insert(
            "INSERT INTO events (seq, stream_id, version, type_id, time_us,"
            " tenant, actor, command_id, correlation_id, causation_id, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    event.seq,
                    streams[event.stream][0],
                    event.version,
                    types[event.type, event.schema],
                    event.time_us,
                    event.tenant,
                    event.actor,
                    event.command_id,
                    event.correlation_id,
                    event.causation_id,
                    event.data,
                )
                for event in planned.events
            ],
        )
        if planned.commands:
            insert(
                "INSERT INTO commands (key, digest, first_seq, last_seq, batch) VALUES (?, ?, ?, ?, ?)",
                [
                    (command_key(*key), accepted.digest, accepted.first_seq, accepted.last_seq, self.head.batch)
                    for key, accepted in planned.commands.items()
                ],
            )
        self._connection.execute(
            "INSERT INTO batches (number, last_seq, link) VALUES (?, ?, ?)",
            (self.head.batch, self.head.seq, self.head.link),
        )

    def _insert_names(self, planned: Plan) -> None:
        """Number the streams and types that are new to the file, and move the streams to where they will be."""
        streams: list[tuple[int, str]] = []
        types: list[tuple[int, str, int, str]] = []
        for event in planned.events:
            known = self._streams.get(event.stream)
            if known is None:
                self._stream_count += 1
                known = (self._stream_count, 0)
                streams.append((self._stream_count, event.stream))
            self._streams[event.stream] = (known[0], event.version)
            if (event.type, event.schema) not in self._types:
                number = len(self._types) + 1
                self._types[event.type, event.schema] = number
                types.append((number, event.type, event.schema, self._program))
        if streams:
            self._connection.executemany("INSERT INTO streams (id, name) VALUES (?, ?)", streams)
        if types:
            self._connection.executemany("INSERT INTO types (id, name, schema, written_by) VALUES (?, ?, ?, ?)", types)

    def _write_head(self) -> None:
        try:
            self._head_file.write(self.head)
        except OSError as error:
            raise self._in_doubt("the head of the log could not be written", error) from error

    def _in_doubt(self, what: str, error: OSError) -> InDoubt:
        return InDoubt(f"{self._path}: {what}: {error}; {RESTART}")
