"""A log as text and back: JSON Lines, so that a log can be kept, moved, repaired, and read by anything.

Only what is proved to be as it was written is exported, so that the export of a damaged log is what can be saved of it.
An import is whole or does not happen: it is made under another name, and needs the last line. The lines are in
`lines.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from aetherscale.eventstore.chain import Head, StoredCommand
from aetherscale.eventstore.groupcommit import BATCH_EVENTS
from aetherscale.eventstore.integrity import proved_commits
from aetherscale.eventstore.lines import (
    FORMAT,
    CommandLine,
    CommitLine,
    EndLine,
    EpochLine,
    EventLine,
    Line,
    LogLine,
    TypeLine,
    command_of_line,
    decode_line,
    encode_line,
    event_of_line,
    line_of_command,
    line_of_event,
    type_of_line,
)
from aetherscale.eventstore.sqlite.files import HeadFile, Lock, read_head
from aetherscale.eventstore.sqlite.opening import (
    check_head,
    connect_for_writing,
    make_log,
    publish,
    remove_unpublished,
    unpublished,
    unpublished_head,
)
from aetherscale.eventstore.sqlite.reading import Epoch, LogReading, snapshot
from aetherscale.eventstore.sqlite.writing import LogWriting, Restored
from aetherscale.eventstore.store import BadImport, Damaged, NotEmpty, StoredEvent
from aetherscale.kernel.times import from_rfc3339, to_rfc3339


class Transferred(Struct, frozen=True):
    """How much went over; `damage` says why it is not all."""

    events: int
    commands: int
    damage: str | None = None


def export(path: Path, write: Callable[[bytes], object]) -> Transferred:
    """Write a log as lines, up to its end or to where it is damaged. Synchronous.

    Raises `NotALog`, `TooNew`, OSError, and `Damaged` where not even its beginning can be read.
    """
    digest = hashlib.sha256()
    events = commands = 0
    head, damage = _head_of(path)

    def put(raw: bytes) -> None:
        digest.update(raw)
        write(raw)

    try:
        with snapshot(path) as reading:
            put(encode_line(_log_line(reading)))
            with closing(proved_commits(reading)) as commits:
                for commit in commits:
                    for event in commit.events:
                        put(encode_line(line_of_event(event)))
                    for command in commit.commands:
                        put(encode_line(line_of_command(command)))
                    put(encode_line(CommitLine(commit.head.link.hex())))
                    events += len(commit.events)
                    commands += len(commit.commands)
            if damage is None:
                check_head(reading, head, path)
    except Damaged as broken:
        if digest.digest() == hashlib.sha256().digest():
            raise
        damage = str(broken)
    put(encode_line(EndLine(events, commands, digest.hexdigest())))
    return Transferred(events, commands, damage)


def import_(lines: Iterable[bytes], path: Path, *, epoch: str, now_us: int) -> Transferred:
    """Make a log of the lines of an export, with equal events and commands. Synchronous.

    What is written to it later is of a new `epoch`, which begins `now_us`: the other log may go on too, and its next
    events are not ours. Raises `NotEmpty`, `BadImport`, `Locked`, `StorageFull`, OSError.
    """
    lock = Lock(path.with_suffix(".lock"))
    try:
        _refuse_to_overwrite(path)
        source = _Lines(lines)
        first = source.first()
        with source.explained():
            epochs = [Epoch(one.first_seq, one.node, one.epoch, from_rfc3339(one.created)) for one in first.epochs]
        make_log(path, epochs)
        making = unpublished(path)
        with (
            closing(connect_for_writing(making)) as connection,
            closing(HeadFile(unpublished_head(path))) as head_file,
        ):
            writing = LogWriting(connection, making, "", head_file, None)
            writing.restore_types([type_of_line(line) for line in first.types])
            commands = _restore(source, writing)
            if writing.head.seq:
                writing.begin_epoch(Epoch(writing.head.seq + 1, writing.node, epoch, now_us))
        publish(path, writing.head)
        return Transferred(writing.head.seq, commands)
    finally:
        remove_unpublished(path)
        lock.release()


def _restore(source: _Lines, writing: LogWriting) -> int:
    """Write the events and commands of the lines; answers how many commands there were."""
    commits: list[Restored] = []
    events: list[StoredEvent] = []
    commands: list[StoredCommand] = []
    link: bytes | None = None
    gathered = read = count = 0
    for line in source.rest():
        match line:
            case EventLine():
                with source.explained():
                    events.append(event_of_line(line))
                read += 1
            case CommandLine():
                commands.append(command_of_line(line))
                count += 1
            case EndLine():
                source.check(line, read, count)
            case CommitLine():
                with source.explained():
                    link = bytes.fromhex(line.hash)
        gathered += 1
        is_end = isinstance(line, EndLine)
        # The first format did not say where a commit ended.
        if (isinstance(line, CommitLine) or is_end or (source.format == 1 and gathered >= BATCH_EVENTS)) and (
            events or commands
        ):
            commits.append((events, commands, link))
            events, commands, link = [], [], None
        if gathered >= BATCH_EVENTS or is_end:
            with source.explained():
                writing.restore(commits)
            commits, gathered = [], 0
    return count


class _Lines:
    """The lines of an export while they are read. Whatever is wrong with them becomes a `BadImport`."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._digest = hashlib.sha256()
        self._before = ""
        self._number = 0
        self.format = FORMAT

    def first(self) -> LogLine:
        line = self._next()
        if not isinstance(line, LogLine) or not line.epochs:
            raise self._bad("this is not the export of a log: expected the line that names its node")
        if line.format > FORMAT:
            raise self._bad(f"the lines have format {line.format}, this version of aetherscale knows up to {FORMAT}")
        self.format = line.format
        return line

    def rest(self) -> Iterator[EventLine | CommandLine | CommitLine | EndLine]:
        """All lines but the first, up to the last one, which there has to be."""
        while True:
            line = self._next()
            if isinstance(line, LogLine):
                raise self._bad("a second export begins here")
            yield line
            if isinstance(line, EndLine):
                return

    def check(self, end: EndLine, events: int, commands: int) -> None:
        found = (events, commands, self._before)
        if found != (end.events, end.commands, end.sha256):
            raise self._bad(
                f"the lines before have been altered: {events} events, {commands} commands, SHA-256 {self._before}; "
                f"expected {end.events}, {end.commands}, {end.sha256}"
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say in which line a value is wrong."""
        try:
            yield
        except ValueError as wrong:
            raise self._bad(str(wrong)) from wrong

    def _next(self) -> Line:
        raw = next(self._lines, None)
        self._number += 1
        if raw is None:
            raise self._bad("the export is cut off: expected the line that ends it")
        self._before = self._digest.hexdigest()
        self._digest.update(raw)
        try:
            return decode_line(raw)
        except msgspec.MsgspecError as wrong:
            raise self._bad(str(wrong)) from None

    def _bad(self, what: str) -> BadImport:
        return BadImport(f"log import: line {self._number}: {what}; nothing was imported")


def _head_of(path: Path) -> tuple[Head | None, str | None]:
    """The head, read before the log to which a node may add meanwhile; or what is wrong with it."""
    try:
        return read_head(path.with_suffix(".head")), None
    except Damaged as broken:
        return None, str(broken)


def _log_line(reading: LogReading) -> LogLine:
    return LogLine(
        format=FORMAT,
        epochs=tuple(
            EpochLine(one.first_seq, one.node, one.epoch, to_rfc3339(one.created_us)) for one in reading.epochs
        ),
        types=tuple(TypeLine(kind.type, kind.schema, kind.written_by) for kind in reading.types()),
    )


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists():
        with snapshot(path) as reading:
            events, (_, commands, _) = reading.head(), reading.counts()
        if events or commands:
            raise NotEmpty(f"{path}: there are {events} events already; import into another --state-dir")
