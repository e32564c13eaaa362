"""Events to bytes and back. A payload is the msgpack of the event's fields; its type and schema stand beside it.

An event of an unknown type or a newer schema is never skipped: the reader refuses and names what it would need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from aetherscale.eventstore.store import Damaged, NewEvent, StoredEvent, TooNew
from aetherscale.kernel.messages import Event, Recorded

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
"""A payload of one schema as the next one has it. Pure."""


class Codec:
    """Encodes and decodes the event types of a program. `upcasters` by (type, the schema that they read)."""

    def __init__(
        self, event_types: Iterable[type[Event]], upcasters: Mapping[tuple[str, int], Upcast] | None = None
    ) -> None:
        self._types = {event_type.__name__: event_type for event_type in event_types}
        self._decoders = {name: msgspec.msgpack.Decoder(event_type) for name, event_type in self._types.items()}
        self._encoder = msgspec.msgpack.Encoder()
        self._upcasters = dict(upcasters or {})

    def encode(self, event: Event) -> NewEvent:
        """The event as it goes into the log. Raises TypeError for a type that this program could not read again."""
        name = type(event).__name__
        if self._types.get(name) is not type(event):
            raise TypeError(f"encode: {name} is not one of the event types of this log")
        return NewEvent(name, event.SCHEMA, self._encoder.encode(event))

    def decode(self, stored: StoredEvent) -> Recorded:
        """The event as it was recorded. Raises `TooNew` and `Damaged`."""
        return Recorded(
            stored.seq,
            stored.stream,
            stored.version,
            self._event(stored),
            stored.time_us,
            stored.node,
            stored.epoch,
            stored.tenant,
            stored.actor,
            stored.command_id,
            stored.correlation_id,
            stored.causation_id,
        )

    def _event(self, stored: StoredEvent) -> Event:
        event_type = self._types.get(stored.type)
        if event_type is None or stored.schema > event_type.SCHEMA:
            raise TooNew(
                f"event {stored.seq} is a {stored.type} of schema {stored.schema}, which this version does not know; "
                "read the log with the version that wrote it, or a newer one"
            )
        try:
            if stored.schema == event_type.SCHEMA:
                return self._decoders[stored.type].decode(stored.data)
            payload = msgspec.msgpack.decode(stored.data)
            for schema in range(stored.schema, event_type.SCHEMA):
                payload = self._upcasters[stored.type, schema](payload)
            return msgspec.convert(payload, event_type)
        except msgspec.MsgspecError as broken:
            raise Damaged(f"event {stored.seq}: the payload is no {stored.type}: {broken}", stored.seq) from None
