"""Golden files: how every event that was ever written looks in the log, so that it can be read for ever.

    tests/golden/events/<type>.<schema>.json

A file is written once, by `python -m tests.support.golden`, which touches none that is there, and never changed.
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

import msgspec

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.store import NewEvent, StoredEvent
from aetherscale.kernel.messages import Event
from tests.support.examples import example_of

DIRECTORY = Path(__file__).parents[1] / "golden" / "events"


def problems(directory: Path, codec: Codec, event_types: Iterable[type[Event]]) -> list[str]:
    """What is wrong with the golden files, or with the events; in words that say what to do."""
    known = {event_type.__name__: event_type for event_type in event_types}
    found = []
    for name, event_type in known.items():
        for schema in range(1, event_type.SCHEMA + 1):
            path = directory / f"{name}.{schema}.json"
            if not path.exists():
                found.append(f"{path.name} is missing: write it with `python -m tests.support.golden`, and commit it")
                continue
            found.extend(_problems_of(json.loads(path.read_text()), codec, event_type, schema))
    for path in sorted(directory.glob("*.json")):
        name, written = path.name.split(".")[:2]
        if name not in known or int(written) > known[name].SCHEMA:
            found.append(f"{name} of schema {written} has been written to logs and has to be readable for ever")
    return found


def _problems_of(golden: dict[str, str], codec: Codec, event_type: type[Event], schema: int) -> list[str]:
    name = event_type.__name__
    payload = b64decode(golden["payload"])
    if msgspec.to_builtins(msgspec.msgpack.decode(payload)) != golden["data"]:
        return [f"{name}.{schema}.json has been changed: put it back"]
    try:
        event = codec.decode(stored(name, schema, payload)).event
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is a finding
        return [f"{name} of schema {schema} can no longer be read: {failure}"]
    if schema < event_type.SCHEMA:
        return []
    example = example_of(event_type)
    if event != example or codec.encode(example).data != payload:
        now = msgspec.msgpack.decode(codec.encode(example).data)
        advice = f"give it SCHEMA = {schema + 1} and an upcaster from {schema}"
        return [f"{name} is not written as it was: {advice}; it was {golden['data']}, now it is {now}"]
    return []


def write_missing(directory: Path, codec: Codec, event_types: Iterable[type[Event]]) -> list[Path]:
    """Write the golden files of event types that have none of their present schema; which ones."""
    written = []
    for event_type in event_types:
        path = directory / f"{event_type.__name__}.{event_type.SCHEMA}.json"
        if not path.exists():
            new = codec.encode(example_of(event_type))
            golden = {
                "type": new.type,
                "schema": new.schema,
                "data": msgspec.to_builtins(msgspec.msgpack.decode(new.data)),
                "payload": b64encode(new.data).decode(),
            }
            path.write_text(json.dumps(golden, indent=2, sort_keys=True) + "\n")
            written.append(path)
    return written


def stored(kind: str, schema: int, payload: bytes) -> StoredEvent:
    """A payload as a log would give it."""
    event = NewEvent(kind, schema, payload)
    return StoredEvent(1, "vm-1", 1, 0, "host1", "epoch1", "default", "user:test", "c", "c", None, event)


if __name__ == "__main__":
    from aetherscale.components import kinds
    from aetherscale.kernel.registry import event_types

    types = event_types(kinds())
    for path in write_missing(DIRECTORY, Codec(types), types):
        sys.stdout.write(f"written: {path}\n")
