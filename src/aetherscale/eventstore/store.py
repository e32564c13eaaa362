"""The port of the event log: streams, versions and payloads. Has never heard of VMs.

`sqlite/` is the real one and `memory.py` its fake; one contract suite runs on both. Payloads are bytes here;
`codec.py` turns them into events and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from aetherscale.kernel.messages import Metadata

T = TypeVar("T")

PAGE: int = 1000
"""How many events are read at once where the caller does not say."""


class NewEvent(Struct, frozen=True, gc=False):
    """An event as bytes: its type, the schema of its payload, and the payload (msgpack)."""

    type: str
    schema: int
    data: bytes


class StreamWrite(Struct, frozen=True):
    """Events for one stream, which must still be at `expected_version` (0: nothing in it; None: wherever it is).

    No events is a condition alone: the append is refused unless the stream is at that version.
    """

    stream: str
    expected_version: int | None
    events: tuple[NewEvent, ...]


class CommandKey(Struct, frozen=True):
    """The identity of a command: its tenant and id, and a digest of the request (SHA-256, 32 bytes)."""

    tenant: str
    command_id: str
    digest: bytes


class Append(Struct, frozen=True):
    """All writes that one message leads to: they are in the log together, next to one another, or not at all."""

    writes: tuple[StreamWrite, ...]
    time_us: int
    tenant: str
    actor: str
    command_id: str
    correlation_id: str
    causation_id: str | None = None
    key: CommandKey | None = None
    """Given for commands; what a host answers has none. It is remembered even where the command led to no events."""
    urgent: bool = False
    """Whether it may use the reserve of a full disk: for what ends things or reports what has happened."""


class Accepted(Struct, frozen=True, array_like=True):
    """The record of a command: the events that it led to, and the digest of the request.

    A command that led to no events has `last_seq` one below `first_seq`.
    """

    digest: bytes
    first_seq: int
    last_seq: int


class StoredEvent(Metadata, frozen=True, gc=False):
    """An event whose payload is bytes: for what has to handle events of types that this program does not know."""

    event: NewEvent

    @property
    def type(self) -> str:
        """The type of the event."""
        return self.event.type

    @property
    def schema(self) -> int:
        """The schema of the payload."""
        return self.event.schema

    @property
    def data(self) -> bytes:
        """The payload (msgpack)."""
        return self.event.data


class StoredType(Struct, frozen=True):
    """A type of event that occurs in the log, and the version of the program that was the first to write it."""

    type: str
    schema: int
    written_by: str


class StoreError(Exception):
    """Base of all that can go wrong with a log. The message says what, where, and which command to type next.

    StoreError
    ├── WrongVersion      another append came first; read again and decide again
    ├── AlreadyAccepted   the command is in the log; here is what it led to
    ├── StorageFull       nothing was written; reading goes on
    ├── InDoubt           a commit may or may not be durable; the store takes no more writes
    ├── Damaged           what is read is not what was written
    ├── NotALog           the file is something else, or there is none
    ├── WrongNode         the log belongs to another node
    ├── TooNew            written by a newer version of the program; names what it needs
    ├── Locked            another process writes to this log; names it
    ├── NotEmpty          an import would go over what is there
    ├── BadImport         what is to be imported is not a whole export; names the line
    └── Closed            the store was closed before this was written
    """


class WrongVersion(StoreError):
    """The stream is not at the version that the append was decided on."""

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(f"stream {stream}: expected version {expected}, found {actual}")
        self.stream, self.expected, self.actual = stream, expected, actual


class AlreadyAccepted(StoreError):
    """The log knows a command of this tenant with this id. Whether it asked for the same is the caller's to compare."""

    def __init__(self, accepted: Accepted) -> None:
        super().__init__(f"the command was accepted as events {accepted.first_seq} to {accepted.last_seq}")
        self.accepted = accepted


class StorageFull(StoreError):
    """No room for an append: nothing of it was written, and nothing of it is acknowledged."""


class InDoubt(StoreError):
    """A commit failed in a way that leaves open whether it is durable. The process has to end; the retry is by id."""


class Damaged(StoreError):
    """The log is damaged at or after `seq`: a torn or flipped byte, a missing row, a head that does not fit."""

    def __init__(self, message: str, seq: int | None = None) -> None:
        super().__init__(message)
        self.seq = seq


class NotALog(StoreError):
    """There is no log where one was expected, or the file is something else. It is left as it is."""


class WrongNode(StoreError):
    """The log belongs to another node than the one that is to be served."""


class TooNew(StoreError):
    """The file, or an event in it, has a form that only a newer version of the program knows."""


class Locked(StoreError):
    """Another process writes to this log, or this one opened it twice."""


class NotEmpty(StoreError):
    """There are events already where a log is to be imported. They are left as they are."""


class BadImport(StoreError):
    """The lines to be imported are not a whole, unaltered export. Nothing was written."""


class Closed(StoreError):
    """The store was closed before the append was written: it is not in the log."""


@dataclass(frozen=True, eq=False)
class Decoding(Generic[T]):
    """The form in which events are read: `AS_STORED`, or decoded by a `Codec`."""

    record: Callable[[int, str, int, int, str, str, str, str, str, str, str | None, Any], T]
    """Called with the fields of `Metadata`, in their order, and with what the payload is."""
    payload: Callable[[int, str, int], Callable[[bytes], Any]]
    """The decoder of the payloads of a type and a schema, first met at a position. Raises `TooNew`."""
    check: Callable[[Iterable[StoredType]], None]
    """Raises `TooNew` for a type that cannot be read."""


def undecodable(seq: int, name: str, broken: Exception) -> Damaged:
    """A payload that is no event of its type."""
    return Damaged(f"event {seq}: the payload is no {name}: {broken}", seq)


def decode(decoding: Decoding[T], stored: StoredEvent) -> T:
    """An event as something else. Raises `TooNew` and `Damaged`."""
    *metadata, new = astuple(stored)
    try:
        fields = (*metadata, decoding.payload(stored.seq, new.type, new.schema)(new.data))
    except msgspec.MsgspecError as broken:
        raise undecodable(stored.seq, new.type, broken) from None
    return decoding.record(*fields)


AS_STORED: Final[Decoding[StoredEvent]] = Decoding(
    StoredEvent, lambda seq, name, schema: partial(NewEvent, name, schema), lambda types: None
)


class Reading(Protocol):
    """The queries of a log, for one thread. `sqlite/reading.py` is the real one, `memory.py` its fake."""

    def head(self) -> int:
        """The position of the last event; 0 in an empty log."""
        ...

    def read(self, decoding: Decoding[T], after: int, limit: int, types: Sequence[str] | None = None) -> Sequence[T]:
        """The next events after a position, in order; of the given types only, where types are given.

        Fewer than `limit` means that there were no more. Raises `Damaged` where an event is missing or unreadable,
        `TooNew` where the decoding does not know its type.
        """
        ...

    def read_stream(self, decoding: Decoding[T], stream: str, after_version: int = 0) -> Sequence[T]:
        """All events of one stream after a version of it, in order; `()` where it has none."""
        ...

    def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """The events of a command, if it was accepted."""
        ...

    def types(self) -> Sequence[StoredType]:
        """Every type of event that occurs in the log."""
        ...

    def position_at(self, time_us: int) -> int:
        """The position that a moment means: the last event before the first one that was recorded later; 0 for none.

        Time may run backwards in a log, where the clock of the host did; positions never do. See `clock.py`.
        """
        ...


class Access(Protocol):
    """Access to a log from the event loop, also to one without a writer."""

    node: str
    """The name of the node whose log it is."""
    epoch: str
    """Generated when the log was made: the same node with a new log is a new epoch."""

    async def ask(self, question: Callable[[Reading], T]) -> T:
        """The result of a query, which runs in the thread of the log. Raises what it raises, and `Closed`."""
        ...

    async def close(self) -> None:
        """Let go of everything; idempotent."""
        ...
