"""The lines of an export, one JSON object each. Pure.

{"line": "log", "format": 1, "epochs": […], "types": […]}
{"line": "event", …the form of an event…, "tenant": …, "epoch": …, "payload": what was written, in base64}
{"line": "command", "command-id": …, "tenant": …, "digest": …, "first-seq": 1, "last-seq": 1}
{"line": "commit", "hash": of the log up to here}
{"line": "end", "events": 1, "commands": 1, "sha256": of all lines before}
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from aetherscale.eventstore.chain import StoredCommand
from aetherscale.eventstore.events_as_json import event_json
from aetherscale.eventstore.store import Accepted, Damaged, NewEvent, StoredEvent, StoredType
from aetherscale.kernel.times import from_rfc3339

FORMAT: Final = 2
"""Of the lines; a newer one is refused. The first had no lines of commits."""


class _Line(Struct, frozen=True, rename="kebab", tag_field="line"):
    pass


class EpochLine(Struct, frozen=True, rename="kebab"):
    """The recorder of the events from `first_seq` on, and since when."""

    first_seq: int
    node: str
    epoch: str
    created: str


class TypeLine(Struct, frozen=True, rename="kebab"):
    """A type of event, and the version of the program that was the first to write it."""

    type: str
    schema: int
    written_by: str


class LogLine(_Line, frozen=True, tag="log"):
    """The first line: whose log it is."""

    format: int
    epochs: tuple[EpochLine, ...]
    types: tuple[TypeLine, ...]


class EventLine(_Line, frozen=True, tag="event"):
    """An event. What is written back is the payload; `data` is for the reader."""

    seq: int
    stream: str
    version: int
    type: str
    schema: int
    time: str
    node: str
    actor: str
    command_id: str
    correlation_id: str
    causation_id: str | None
    tenant: str
    epoch: str
    payload: bytes


class CommandLine(_Line, frozen=True, tag="command"):
    """An accepted command, after the events that it led to."""

    command_id: str
    tenant: str
    digest: bytes
    first_seq: int
    last_seq: int


class CommitLine(_Line, frozen=True, tag="commit"):
    """The end of a commit: the events and commands since the one before it were written together.

    So an import has the hash chain of the log that was exported, and the heads that were witnessed of it.
    """

    hash: str


class EndLine(_Line, frozen=True, tag="end"):
    """The last line: how much there was, and a digest over it."""

    events: int
    commands: int
    sha256: str


Line = LogLine | EventLine | CommandLine | CommitLine | EndLine

_NIL: Final = msgspec.msgpack.encode(None)
_decoder = msgspec.json.Decoder(Line)


def encode_line(item: Line | dict[str, Any]) -> bytes:
    """With its newline."""
    return msgspec.json.encode(item) + b"\n"


def decode_line(raw: bytes) -> Line:
    """The inverse. Raises msgspec.MsgspecError, which names the field."""
    line: Line = _decoder.decode(raw)
    return line


def line_of_event(event: StoredEvent) -> dict[str, Any]:
    """The form that events have everywhere, and what an import needs beside it.

    A payload that has no form of that kind is written back all the same: it is in the line as it is.
    """
    try:
        form = event_json(event)
    except Damaged:
        form = event_json(replace(event, event=replace(event.event, data=_NIL)))
    return {
        "line": "event",
        **form,
        "tenant": event.tenant,
        "epoch": event.epoch,
        "payload": event.data,
    }


def event_of_line(line: EventLine) -> StoredEvent:
    """The inverse. Raises ValueError for what is no time."""
    return StoredEvent(
        line.seq,
        line.stream,
        line.version,
        from_rfc3339(line.time),
        line.node,
        line.epoch,
        line.tenant,
        line.actor,
        line.command_id,
        line.correlation_id,
        line.causation_id,
        NewEvent(line.type, line.schema, line.payload),
    )


def line_of_command(command: StoredCommand) -> CommandLine:
    """The record of a command."""
    accepted = command.accepted
    return CommandLine(command.command_id, command.tenant, accepted.digest, accepted.first_seq, accepted.last_seq)


def command_of_line(line: CommandLine) -> StoredCommand:
    """The inverse."""
    return StoredCommand(line.tenant, line.command_id, Accepted(line.digest, line.first_seq, line.last_seq))


def type_of_line(line: TypeLine) -> StoredType:
    """A type of event."""
    return StoredType(line.type, line.schema, line.written_by)
