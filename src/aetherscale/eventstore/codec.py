"""Events to bytes and back. A payload is the msgpack of the event's fields; its type and schema stand beside it.

An event of an unknown type or a newer schema is never skipped: the reader refuses and names what it would need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import astuple

from aetherscale.eventstore.store import Damaged, NewEvent, StoredEvent, StoredType, TooNew
from aetherscale.kernel.messages import Event, Recorded

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
"""A payload of one schema as the next one has it. Pure."""


class Codec:
    """Encodes and decodes the event types of a program. `upcasters` by (type, the schema that they read)."""

    def __init__(
        self, event_types: Iterable[type[Event]], upcasters: Mapping[tuple[str, int], Upcast] | None = None
    ) -> None:
        self._types: dict[str, type[Event]] = {}
        self._upcasters = dict(upcasters or {})
        for event_type in event_types:
            name = event_type.__name__
            assert self._types.setdefault(name, event_type) is event_type, f"two event types are called {name}"
            older = () if event_type.ONLY_ADDED else range(1, event_type.SCHEMA)
            missing = [schema for schema in older if (name, schema) not in self._upcasters]
            assert not missing, f"{name} has schema {event_type.SCHEMA}, but nothing reads its schemas {missing}"
        self._decoders = {name: msgspec.msgpack.Decoder(event_type) for name, event_type in self._types.items()}
        self._current = {
            (name, schema): self._decoders[name].decode
            for name, event_type in self._types.items()
            for schema in range(1 if event_type.ONLY_ADDED else event_type.SCHEMA, event_type.SCHEMA + 1)
        }
        """What decodes payloads that need no upcast, which nearly all are: one look instead of several for each."""
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, event: Event) -> NewEvent:
        """The event as it goes into the log. Raises TypeError for one that this program could not read again."""
        name = type(event).__name__
        if self._types.get(name) is not type(event):
            raise TypeError(f"encode: {name} is not one of the event types of this log")
        data = self._encoder.encode(event)
        try:
            same = self._decoders[name].decode(data) == event
        except msgspec.MsgspecError as broken:
            raise TypeError(f"encode: {event!r:.300} is no {name}: {broken}") from None
        if not same:
            raise TypeError(f"encode: {event!r:.300} would be read as another {name}")
        return NewEvent(name, event.SCHEMA, data)

    def decode(self, stored: StoredEvent) -> Recorded:
        """The event as it was recorded. Raises `TooNew` and `Damaged`."""
        return self.recorded(*astuple(stored))

    def recorded(
        self,
        seq: int,
        stream: str,
        version: int,
        name: str,
        schema: int,
        data: bytes,
        time_us: int,
        node: str,
        epoch: str,
        tenant: str,
        actor: str,
        command_id: str,
        correlation_id: str,
        causation_id: str | None,
    ) -> Recorded:
        """The same, of the fields of a `StoredEvent`: a `Make`."""
        try:
            decode = self._current.get((name, schema))
            event = decode(data) if decode is not None else self._upcast(seq, name, schema, data)
        except msgspec.MsgspecError as broken:
            raise Damaged(f"event {seq}: the payload is no {name}: {broken}", seq) from None
        return Recorded(
            seq,
            stream,
            version,
            event,
            time_us,
            node,
            epoch,
            tenant,
            actor,
            command_id,
            correlation_id,
            causation_id,
        )

    def check(self, types: Iterable[StoredType]) -> None:
        """Make sure that every type of event in a log can be read. Raises `TooNew`, which names the program needed."""
        for stored in types:
            if not self._knows(stored.type, stored.schema):
                by = f"aetherscale {stored.written_by}" if stored.written_by else "another version"
                raise TooNew(
                    f"the log has events of type {stored.type}, schema {stored.schema}, first written by {by}, which "
                    f"this version does not know; use that version or a newer one"
                )

    def _knows(self, name: str, schema: int) -> bool:
        event_type = self._types.get(name)
        return event_type is not None and 1 <= schema <= event_type.SCHEMA

    def _upcast(self, seq: int, name: str, schema: int, data: bytes) -> Event:
        """An event of an older schema. Raises `TooNew`, msgspec.MsgspecError."""
        if not self._knows(name, schema):
            raise TooNew(
                f"event {seq} is a {name} of schema {schema}, which this version does not know; "
                "read the log with the version that wrote it, or a newer one"
            )
        event_type = self._types[name]
        payload = msgspec.msgpack.decode(data)
        for older in range(schema, event_type.SCHEMA):
            payload = self._upcasters[name, older](payload)
        return msgspec.convert(payload, event_type)
