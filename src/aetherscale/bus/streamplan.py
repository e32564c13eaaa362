"""The plan for the broker's copy of the log, given the states of the copy and the log. Pure.

the copy                                          what follows
not there                                         Create, publish from the beginning
a beginning of the log, without a hole            Continue after its last event
events missing, or one that is not this node's   Rebuild: delete, create, publish again
events of another epoch of the log                SetAside: they may be the only copy; then Create
somebody else's messages on other subjects        SetAside: they are not ours to delete; then Create
more events of this epoch than the log has        Halt: acknowledged events are missing from the log
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

MAX_MESSAGE_BYTES: Final = 2 * 1024 * 1024
"""The oldest messages are dropped one by one to stay within a limit: no more than one message is missing to it."""

FOREIGN: Final = "foreign"
"""Stands for the epoch of what was never the log of a node."""

_EVENT_ID = re.compile(r"(?P<node>[a-z0-9-]{1,63})\.(?P<epoch>[A-Za-z0-9_-]{1,64})\.(?P<seq>[1-9][0-9]{0,18})")


class StreamState(Struct, frozen=True):
    """The state of the stream, according to the broker."""

    first_seq: int
    last_seq: int
    messages: int
    deleted: int
    size_bytes: int
    subjects: tuple[str, ...]
    tip_id: str
    """The `Nats-Msg-Id` of its last message; "" where it has none."""
    created: str = ""
    """When it was made, as digits: no two streams of a name were made at one moment."""


class LogState(Struct, frozen=True):
    """The state of the log."""

    node: str
    epoch: str
    """The one that it is in; older events may be of earlier ones."""
    head: int
    id_at_tip: str
    """The id of its event at the position of the stream's last message; "" where it has none there."""


class Create(Struct, frozen=True):
    """Make the stream, and publish from `first_seq` on."""

    first_seq: int = 1


class Continue(Struct, frozen=True):
    """Publish what comes after `after`."""

    after: int


class Rebuild(Struct, frozen=True):
    """Delete the stream and publish it again: it has lost or gained something."""

    first_seq: int
    why: str


class SetAside(Struct, frozen=True):
    """Keep the stream under another name: it has events of another log of this node, or what was never a node's."""

    epoch: str


class Halt(Struct, frozen=True):
    """Publish nothing: whatever we did would give a position in the log two meanings."""

    why: str


Plan = Create | Continue | Rebuild | SetAside | Halt


def plan(stream: StreamState | None, log: LogState, wanted_subjects: tuple[str, ...], max_bytes: int) -> Plan:
    """The plan. `log` was read after `stream`, so that a stream that is ahead of it is so in truth."""
    if stream is None:
        return Create()
    if stream.messages == 0:
        if stream.last_seq == 0 and stream.subjects == wanted_subjects:
            return Continue(0)
        return Rebuild(1, "all its events are missing" if stream.last_seq else "its subjects are others")
    if stream.tip_id and stream.tip_id == log.id_at_tip:
        return _up_to_the_tip(stream, wanted_subjects, max_bytes)
    theirs = _EVENT_ID.fullmatch(stream.tip_id)
    if (theirs is None or theirs["node"] != log.node) and stream.subjects != wanted_subjects:
        return SetAside(FOREIGN)
    if theirs is None or theirs["node"] != log.node or int(theirs["seq"]) != stream.last_seq:
        return Rebuild(1, f"its last message, {stream.tip_id[:80]!r}, is not event {stream.last_seq} of this node")
    if theirs["epoch"] != log.epoch:
        return SetAside(theirs["epoch"])
    if stream.last_seq > log.head:
        return Halt(f"it has events up to {stream.last_seq}, the log of the same epoch only up to {log.head}")
    return Rebuild(1, f"its last message is {stream.tip_id!r}, the log has {log.id_at_tip!r} there")


def _up_to_the_tip(stream: StreamState, wanted_subjects: tuple[str, ...], max_bytes: int) -> Plan:
    was_trimmed = stream.first_seq > 1 and stream.size_bytes + MAX_MESSAGE_BYTES >= max_bytes
    again_from = stream.first_seq if was_trimmed else 1
    if stream.subjects != wanted_subjects:
        return Rebuild(again_from, "its subjects are others")
    if stream.first_seq > 1 and not was_trimmed:
        return Rebuild(1, f"events before {stream.first_seq} are missing")
    expected = stream.last_seq - stream.first_seq + 1
    if stream.deleted or stream.messages != expected:
        return Rebuild(again_from, f"{expected - stream.messages} of its events are missing")
    return Continue(stream.last_seq)
