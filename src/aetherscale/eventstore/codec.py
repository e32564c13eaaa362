"""Events to bytes and back. A payload is the msgpack of the event's fields; its type and schema stand beside it.

An event of an unknown type or a newer schema is never skipped: the reader refuses and names what it would need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from aetherscale.eventstore.store import Decoding, NewEvent, StoredEvent, StoredType, TooNew, decode
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
        self._encoder = msgspec.msgpack.Encoder()
        self.decoding: Final[Decoding[Recorded]] = Decoding(Recorded, self._payload, self.check)
        """How a log is read as recorded events."""

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
        return decode(self.decoding, stored)

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

    def _payload(self, seq: int, name: str, schema: int) -> Callable[[bytes], Event]:
        """The decoder of the payloads of a type and a schema: a look-up where they need no upcast, as most do."""
        decode = self._current.get((name, schema))
        if decode is not None:
            return decode
        if not self._knows(name, schema):
            raise TooNew(
                f"event {seq} is a {name} of schema {schema}, which this version does not know; "
                "read the log with the version that wrote it, or a newer one"
            )
        return partial(self._upcast, name, schema)

    def _upcast(self, name: str, schema: int, data: bytes) -> Event:
        """An event of an older schema. Raises msgspec.MsgspecError."""
        event_type = self._types[name]
        payload = msgspec.msgpack.decode(data)
        for older in range(schema, event_type.SCHEMA):
            payload = self._upcasters[name, older](payload)
        return msgspec.convert(payload, event_type)
