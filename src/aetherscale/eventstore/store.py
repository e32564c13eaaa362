"""The port of the event log: streams, versions and payloads. Has never heard of VMs.

`sqlite/` is the real one and `memory.py` its fake; one contract suite runs on both. Payloads are bytes here;
`codec.py` turns them into events and back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from aetherscale.eventstore.chain import Head

T = TypeVar("T")

PAGE: int = 1000
"""How many events are read at once where the caller does not say."""


class NewEvent(Struct, frozen=True):
    """An event that is not yet in the log: its type, the schema of its payload, and the payload (msgpack)."""

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
    """What makes a command recognisable: its tenant and id, and a digest of what it asks for (SHA-256, 32 bytes)."""

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
    """What the log remembers of a command: which events it led to, and the digest of what it asked for.

    A command that led to no events has `last_seq` one below `first_seq`.
    """

    digest: bytes
    first_seq: int
    last_seq: int


class StoredEvent(Struct, frozen=True, array_like=True, gc=False):
    """One row of the log with everything resolved. The order of the fields is part of the hash chain."""

    seq: int
    stream: str
    version: int
    type: str
    schema: int
    data: bytes
    time_us: int
    node: str
    epoch: str
    tenant: str
    actor: str
    command_id: str
    correlation_id: str
    causation_id: str | None


Make = Callable[[int, str, int, str, int, bytes, int, str, str, str, str, str, str, str | None], T]
"""What makes something of a row of the log; it is called with the fields of `StoredEvent`, in their order."""


class StoredType(Struct, frozen=True):
    """A type of event that occurs in the log, and the version of the program that was the first to write it."""

    type: str
    schema: int
    written_by: str


class StoreError(Exception):
    """Base of all that can go wrong with a log. The message says what, where, and which command to type next.

    StoreError
    ├── WrongVersion      somebody else wrote to the stream; read again and decide anew
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


class Reader(Protocol):
    """What can be read from a log, also from one without a writer."""

    node: str
    """The name of the node whose log it is."""
    epoch: str
    """Generated when the log was made: the same node with a new log is a new epoch."""

    async def head(self) -> int:
        """The position of the last event; 0 in an empty log."""
        ...

    async def read(self, after: int, limit: int = PAGE, types: Sequence[str] | None = None) -> Sequence[StoredEvent]:
        """The next events after a position, in order; of the given types only, where types are given.

        Fewer than `limit` means that there were no more. Raises `Damaged` where an event is missing or unreadable.
        """
        ...

    async def read_as(
        self, make: Make[T], after: int, limit: int = PAGE, types: Sequence[str] | None = None
    ) -> Sequence[T]:
        """The same, each event as what `make` makes of it, which may be called in another thread.

        Where many are read, one object for each instead of two is a good part of the time.
        """
        ...

    async def read_stream(self, stream: str, after_version: int = 0) -> Sequence[StoredEvent]:
        """All events of one stream after a version of it, in order; `()` where it has none."""
        ...

    async def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """What a command led to, if it was accepted."""
        ...

    async def types(self) -> Sequence[StoredType]:
        """Every type of event that occurs in the log."""
        ...

    async def position_at(self, time_us: int) -> int:
        """The position that a moment means: the last event before the first one that was recorded later; 0 for none.

        Time may run backwards in a log, where the clock of the host did; positions never do. See `clock.py`.
        """
        ...

    def subscribe(self, after: int) -> AsyncGenerator[Sequence[StoredEvent], None]:
        """All events after a position, in order, without gap or double: first the past in pages, then as they come.

        Memory is bounded: a slow reader is given pages from the log, not a growing queue. Ends when the log is closed.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; idempotent."""
        ...


class Store(Reader, Protocol):
    """The log of one node: one writer, any number of readers."""

    def on_commit(self, listener: Callable[[Sequence[StoredEvent]], None]) -> None:
        """Call `listener` with all that has become durable, in the order of the log, before any `append` returns it.

        It must not fail and may not wait: when an append returns, every projection has its events.
        """
        ...

    def durable_head(self) -> Head:
        """The end of the log as of the last commit that is durable. Costs nothing; see `chain.py`."""
        ...

    async def append(self, append: Append) -> Sequence[StoredEvent]:
        """Write all of it and return when it is durable, with what is now in the log (`()` where it had no events).

        Appends become durable in the order of the calls; whatever waits together is committed together. A cancelled
        call may still have written. Raises `WrongVersion`, `AlreadyAccepted`, `StorageFull`, `InDoubt`, `Damaged`,
        `Closed`; and ValueError for what no log can hold (text that is not Unicode, a year beyond 9999).
        """
        ...
