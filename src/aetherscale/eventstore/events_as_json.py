"""An event as the outside sees it: one JSON object, the same in every list, tail, export and debugger."""

from __future__ import annotations

from typing import Any

import msgspec

from aetherscale.eventstore.store import Damaged, StoredEvent
from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.times import to_rfc3339


def event_json(event: Recorded | StoredEvent) -> dict[str, Any]:
    """The form of docs/contract.md: what JSON has no type for (bytes) is base64.

    A `StoredEvent` need not be of a type that this program knows; its data has the schema that it was written with.
    A `Recorded` has the newest one. Raises `Damaged` for a payload that is not MessagePack.
    """
    if isinstance(event, Recorded):
        kind, schema = type(event.event).__name__, event.event.SCHEMA
        data = msgspec.to_builtins(event.event)
    else:
        kind, schema = event.type, event.schema
        try:
            data = msgspec.to_builtins(msgspec.msgpack.decode(event.data), str_keys=True)
        except (msgspec.MsgspecError, ValueError, TypeError) as broken:
            raise Damaged(f"event {event.seq}: the payload is not MessagePack: {broken}", event.seq) from None
    return {
        "seq": event.seq,
        "stream": event.stream,
        "version": event.version,
        "type": kind,
        "schema": schema,
        "time": to_rfc3339(event.time_us),
        "node": event.node,
        "actor": event.actor,
        "command-id": event.command_id,
        "correlation-id": event.correlation_id,
        "causation-id": event.causation_id,
        "data": data,
    }
