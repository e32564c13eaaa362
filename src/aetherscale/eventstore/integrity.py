"""Whether a log is whole, and what is in it. Reads only, with no server or beside a running one.

Four things are proved: every commit hashes to its link in the chain; positions and the versions of every stream have no
gap; the chain ends where the head file says; SQLite finds nothing wrong with its own pages and indexes, nor is anything
wrong with what leads to sealed events.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Generic, TypeVar

from msgspec import Struct

from aetherscale.eventstore.chain import EMPTY, Head, StoredCommand, next_head
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.sqlite.files import read_head
from aetherscale.eventstore.sqlite.opening import check_head
from aetherscale.eventstore.sqlite.reading import LogReading, snapshot
from aetherscale.eventstore.store import Damaged, NotALog, StoredEvent, StoredType, StoreError, TooNew
from aetherscale.eventstore.witness import Comparison, Witnessed

T = TypeVar("T")

PROVED_BYTES: Final = 4 * 1024**2
"""A log up to this size is proved from its first event on before it is used, in a tenth of a second. Of a larger one
what is used is compared with the head, and all of it is proved beside the running node, or by those who ask for it."""

MOST_PROBLEMS: Final = 100
"""How many problems are reported; the first is the one that matters."""


class Problem(Struct, frozen=True):
    """Something that is not as it was written; `seq` is the first event that is affected, where that is known."""

    seq: int | None
    message: str


class Verification(Struct, frozen=True):
    """The result of a verification. `events` and `commits` count what is proved to be as it was written, from the first
    on.

    Of the problems the first `MOST_PROBLEMS` are reported. `witnessed` counts the heads kept elsewhere that fit; None
    where none were given.
    """

    events: int
    commits: int
    problems: tuple[Problem, ...]
    witnessed: int | None = None


class LogInfo(Struct, frozen=True):
    """The facts of a log. Times are microseconds since 1970 UTC, None in an empty log."""

    path: str
    node: str
    epoch: str
    epochs: int
    created_us: int
    events: int
    streams: int
    commands: int
    commits: int
    first_us: int | None
    last_us: int | None
    types: tuple[StoredType, ...]
    size_bytes: int
    wal_bytes: int
    sealed_to: int
    """The last event that `log archive` has sealed; 0 for none."""
    segments: int
    sealed_bytes: int


class Commit(Struct, frozen=True):
    """One commit of the chain, proved to be as it was written."""

    head: Head
    events: Sequence[StoredEvent]
    commands: Sequence[StoredCommand]


def verify(path: Path, codec: Codec | None = None, witnessed: Sequence[Witnessed] | None = None) -> Verification:
    """Read everything and prove it; with a codec also that every event can be decoded.

    With heads that were kept elsewhere also that it is the log that had them: see `witness.py`.
    Synchronous: some seconds for each million events. Raises `NotALog`, `TooNew`, OSError.
    """
    proved, kept = EMPTY, None
    problems: list[Problem] = []
    try:
        head = read_head(path.with_suffix(".head"))
        with snapshot(path) as reading:
            if witnessed is not None:
                kept = Comparison(witnessed, reading.epochs[-1].node)
            with closing(proved_commits(reading)) as commits:
                for commit in commits:
                    proved = commit.head
                    if kept is not None:
                        kept.prove(proved)
                    if codec is not None and len(problems) < MOST_PROBLEMS:
                        problems.extend(_undecodable(commit.events, codec))
            check_head(reading, head, path)
            problems.extend(Problem(None, f"{path}: {fault}") for fault in reading.faults())
    except (NotALog, TooNew):
        raise
    except StoreError as damage:
        problems.append(Problem(getattr(damage, "seq", None) or proved.seq + 1, str(damage)))
    if kept is not None and (unlike := kept.problem(proved.seq, damaged=bool(problems))):
        problems.insert(0, Problem(unlike[0], f"{path}: {unlike[1]}"))
    return Verification(proved.seq, proved.batch, tuple(problems[:MOST_PROBLEMS]), kept.found if kept else None)


def witness(path: Path, time: str) -> Witnessed:
    """The end of a log as it is at this time, to be kept elsewhere. Raises `StoreError`, OSError."""
    head = read_head(path.with_suffix(".head"))
    with snapshot(path) as reading:
        check_head(reading, head, path)
        last = reading.chain_head() or EMPTY
        return Witnessed(reading.epochs[-1].node, reading.epochs[-1].epoch, last.seq, last.link.hex(), time)


def is_large(path: Path) -> bool:
    """Whether verifying this log takes long. Raises OSError."""
    return path.stat().st_size > PROVED_BYTES


def prove(path: Path) -> None:
    """Read everything and raise `Damaged` at the first that is not as it was written; also what `verify` raises."""
    for problem in verify(path).problems:
        raise Damaged(problem.message, problem.seq)


def proved_commits(reading: LogReading) -> Generator[Commit, None, None]:
    """Every commit in order, each proved by its link. Raises `Damaged` at the first that is not as it was written.

    To be closed before the connection is.
    """
    versions: dict[str, int] = {}
    head = EMPTY
    with closing(reading.links()) as links, closing(reading.read_all()) as stored, closing(reading.commands()) as known:
        events = _Taking(stored, lambda event: event.seq)
        commands = _Taking(known, lambda found: found[0])
        for link in links:
            commit = Commit(link, events.take(link.seq), [command for _, command in commands.take(link.batch)])
            if next_head(head, commit.events, commit.commands) != link:
                raise _damaged(head.seq + 1, f"commit {head.batch + 1} is not as it was written")
            for seq, event in enumerate(commit.events, head.seq + 1):
                versions[event.stream] = versions.get(event.stream, 0) + 1
                if (event.seq, event.version) != (seq, versions[event.stream]):
                    raise _damaged(seq, f"event {event.seq}, version {event.version} of {event.stream}")
            head = link
            yield commit
        if not (events.is_done() and commands.is_done()):
            raise _damaged(head.seq + 1, "what follows belongs to no commit")


def info(path: Path) -> LogInfo:
    """The facts of a log, without verifying it. Raises `NotALog`, `TooNew`, `Damaged`, OSError."""
    with snapshot(path) as reading:
        head = reading.head()
        streams, commands, commits = reading.counts()
        wal = path.with_name(f"{path.name}-wal")
        segments, sealed_bytes = reading.segments.size()
        return LogInfo(
            path=str(path),
            node=reading.epochs[-1].node,
            epoch=reading.epochs[-1].epoch,
            epochs=len(reading.epochs),
            created_us=reading.epochs[0].created_us,
            events=head,
            streams=streams,
            commands=commands,
            commits=commits,
            first_us=reading.time_us_of(1),
            last_us=reading.time_us_of(head),
            types=tuple(reading.types()),
            size_bytes=path.stat().st_size,
            wal_bytes=wal.stat().st_size if wal.exists() else 0,
            sealed_to=reading.segments.last_seq(),
            segments=segments,
            sealed_bytes=sealed_bytes,
        )


class _Taking(Generic[T]):
    """An iterator that is taken piece by piece, in the order of a number that its items have."""

    def __init__(self, iterator: Iterator[T], number: Callable[[T], int]) -> None:
        self._iterator = iterator
        self._number = number
        self._next = next(iterator, None)

    def take(self, last: int) -> list[T]:
        """The next items up to a number."""
        taken: list[T] = []
        while self._next is not None and self._number(self._next) <= last:
            taken.append(self._next)
            self._next = next(self._iterator, None)
        return taken

    def is_done(self) -> bool:
        """Whether nothing is left."""
        return self._next is None


def _undecodable(events: Sequence[StoredEvent], codec: Codec) -> Iterator[Problem]:
    for event in events:
        try:
            codec.decode(event)
        except StoreError as problem:
            yield Problem(event.seq, str(problem))


def _damaged(seq: int, what: str) -> Damaged:
    return Damaged(f"log damaged at {seq}: {what}", seq)
