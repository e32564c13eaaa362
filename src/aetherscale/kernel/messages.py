"""Events, and the envelopes around what goes in and what has been recorded."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from msgspec import Struct

M = TypeVar("M")


class Event(Struct, frozen=True, rename="kebab", gc=False):
    """An immutable fact in the past tense. Its type is the class's name, kept beside the payload in the log.

    `SCHEMA` grows by one with each change of the payload's shape; an upcaster then reads the older ones.
    """

    SCHEMA: ClassVar[int] = 1
    ONLY_ADDED: ClassVar[bool] = False
    """Whether every schema since the first has only added fields with defaults, or values that a field may have: then
    older ones need no upcaster.
    """


class Envelope(Struct, Generic[M], frozen=True):
    """A message on its way into a mailbox, with everything that a pure decider may not fetch for itself."""

    message: M
    tenant: str
    actor: str
    """The actor: the caller, such as `unix:joe`, or `aether:<component>` for reports of the host and for policies."""
    command_id: str
    correlation_id: str
    causation_id: str | None
    at_us: int


class Metadata(Struct, frozen=True, gc=False):
    """The metadata of an event in the log.

    Like the event, it cannot be part of a cycle: looking for one took a third of the time of a replay.
    """

    seq: int
    """Position in the log of the node: 1, 2, 3 … without a gap."""
    stream: str
    version: int
    """Position in its stream: 1, 2, 3 … without a gap."""
    time_us: int
    node: str
    epoch: str
    tenant: str
    actor: str
    command_id: str
    correlation_id: str
    causation_id: str | None


class Recorded(Metadata, frozen=True, gc=False):
    """An event as the log has it."""

    event: Event


def stream_name(kind: str, aggregate_id: str) -> str:
    """`vm-0123…`: the kind has no dash, so that the two can be told apart again."""
    return f"{kind}-{aggregate_id}"


def split_stream(stream: str) -> tuple[str, str]:
    """The kind and the id of a stream."""
    kind, _, aggregate_id = stream.partition("-")
    return kind, aggregate_id


def event_id(node: str, epoch: str, seq: int) -> str:
    """The id of an event everywhere outside its log: `Nats-Msg-Id`, CloudEvents `id`, a causation id."""
    return f"{node}.{epoch}.{seq}"
