"""Recorded events as the outside sees them: CloudEvents 1.0 in JSON, and the subject of each.

Pure. Source: the CloudEvents specification 1.0.2 (JSON event format, "sequence" extension).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.kernel import subjects
from aetherscale.kernel.messages import Recorded, event_id, split_stream
from aetherscale.kernel.times import to_rfc3339

TYPE_PREFIX: Final = "io.aetherscale."
SEQUENCE_DIGITS: Final = 20
"""The sequence extension is text that sorts as the numbers do."""


class _CloudEvent(Struct, frozen=True, omit_defaults=True):
    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    sequence: str
    streamversion: int
    actor: str
    commandid: str
    correlationid: str
    causationid: str | None = None
    dataomitted: bool = False
    data: Any = msgspec.UNSET


def encode(recorded: Recorded, max_bytes: int) -> bytes:
    """The JSON of an event; without `data` and with `dataomitted` where it would be more than a broker takes."""
    body = _encode(recorded, omit_data=False)
    return body if len(body) <= max_bytes else _encode(recorded, omit_data=True)


def _encode(recorded: Recorded, *, omit_data: bool) -> bytes:
    return msgspec.json.encode(
        _CloudEvent(
            specversion="1.0",
            id=event_id(recorded.node, recorded.epoch, recorded.seq),
            source=f"/aetherscale/nodes/{recorded.node}",
            type=TYPE_PREFIX + type(recorded.event).__name__,
            subject=recorded.stream,
            time=to_rfc3339(recorded.time_us),
            datacontenttype="application/json",
            sequence=f"{recorded.seq:0{SEQUENCE_DIGITS}d}",
            streamversion=recorded.version,
            actor=recorded.actor,
            commandid=recorded.command_id,
            correlationid=recorded.correlation_id,
            causationid=recorded.causation_id,
            dataomitted=omit_data,
            data=msgspec.UNSET if omit_data else recorded.event,
        )
    )


def subject(recorded: Recorded) -> str:
    """Where an event is published."""
    kind, aggregate_id = split_stream(recorded.stream)
    return subjects.event(recorded.tenant, recorded.node, kind, aggregate_id, type(recorded.event).__name__)


def agrees(published: bytes, current: bytes) -> bool:
    """Whether what was published says nothing else than what would be published now.

    A newer version of the program may say more: what it added is not what an older one got wrong.
    """
    try:
        return _within(msgspec.json.decode(published), msgspec.json.decode(current))
    except (msgspec.DecodeError, RecursionError):
        return False


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and _within(value, whole[name]) for name, value in part.items())
    return type(part) is type(whole) and bool(part == whole)
