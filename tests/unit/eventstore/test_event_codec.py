"""Events to bytes and back, and the typed face of the log."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec
import pytest

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.events_as_json import event_json
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.memory import MemoryLog, open_memory
from aetherscale.eventstore.store import AlreadyAccepted, Damaged, StoredType, TooNew
from aetherscale.kernel.messages import Envelope, Event, Recorded
from tests.support.event_logs import EPOCH, NODE, NOW_US, digest_of
from tests.support.golden import stored


class Moved(Event, frozen=True):
    """Of schema 3: 1 had `place`, 2 had `where`."""

    SCHEMA: ClassVar[int] = 3
    to: str
    how_far_m: int = 0


class Rested(Event, frozen=True):
    """Of schema 1."""

    digest: bytes = b""


UPCASTERS = {
    ("Moved", 1): lambda old: {"where": old["place"]},
    ("Moved", 2): lambda old: {"to": old["where"], "how-far-m": old.get("how-far-m", 1)},
}
CODEC = Codec([Moved, Rested], UPCASTERS)


def payload(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({name.replace("_", "-"): value for name, value in fields.items()})


def test_an_event_comes_back_as_it_was() -> None:
    new = CODEC.encode(Moved("rack 4", 2))
    assert (new.type, new.schema) == ("Moved", 3)
    assert msgspec.msgpack.decode(new.data) == {"to": "rack 4", "how-far-m": 2}
    assert CODEC.decode(stored(new.type, new.schema, new.data)).event == Moved("rack 4", 2)


def test_the_envelope_comes_along() -> None:
    row = stored("Rested", 1, payload(digest=b"\x01"))
    recorded = CODEC.decode(row)
    assert isinstance(recorded, Recorded)
    for name in Recorded.__struct_fields__:
        if name != "event":
            assert getattr(recorded, name) == getattr(row, name)


@pytest.mark.parametrize(
    ("schema", "old", "expected"),
    [
        (1, payload(place="rack 1"), Moved("rack 1", 1)),
        (2, payload(where="rack 2", how_far_m=9), Moved("rack 2", 9)),
        (3, payload(to="rack 3"), Moved("rack 3", 0)),
    ],
)
def test_an_event_of_any_older_schema_can_be_read(schema: int, old: bytes, expected: Moved) -> None:
    assert CODEC.decode(stored("Moved", schema, old)).event == expected


@pytest.mark.parametrize(("kind", "schema"), [("Moved", 4), ("Moved", 0), ("Vanished", 1)])
def test_an_unknown_event_is_refused_by_name_and_never_skipped(kind: str, schema: int) -> None:
    with pytest.raises(TooNew, match=f"event 1 is a {kind} of schema {schema}"):
        CODEC.decode(stored(kind, schema, payload(to="x")))


@pytest.mark.parametrize("data", [b"", b"\xc1", payload(), payload(to=7), payload(to="x") + b"\x00"])
def test_a_payload_that_is_no_such_event_is_damage(data: bytes) -> None:
    with pytest.raises(Damaged, match="event 1: the payload is no Moved") as damaged:
        CODEC.decode(stored("Moved", 3, data))
    assert damaged.value.seq == 1


def test_what_could_not_be_read_again_is_not_written() -> None:
    class Foreign(Event, frozen=True):
        pass

    unwritable: list[Event] = [Foreign(), Moved(7), Rested("text")]  # type: ignore[arg-type]
    for event in unwritable:
        with pytest.raises(TypeError, match="encode: "):
            CODEC.encode(event)


def test_a_schema_that_nothing_reads_is_a_mistake_at_the_start() -> None:
    with pytest.raises(AssertionError, match=r"Moved has schema 3, but nothing reads its schemas \[1\]"):
        Codec([Moved], {("Moved", 2): UPCASTERS["Moved", 2]})


def test_two_event_types_of_one_name_are_a_mistake_at_the_start() -> None:
    other = type("Rested", (Event,), {}, frozen=True)
    with pytest.raises(AssertionError, match="two event types are called Rested"):
        Codec([Rested, other])


# --- the typed log ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def log() -> AsyncIterator[EventLog]:
    opened = EventLog(await open_memory(MemoryLog(NODE, EPOCH, "0.9.0")), CODEC)
    yield opened
    await opened.close()


def envelope(command_id: str = "command-1") -> Envelope[str]:
    return Envelope("said", "default", "user:test", command_id, "correlation-1", "cause-1", NOW_US)


async def test_what_is_appended_is_recorded_with_its_envelope(log: EventLog) -> None:
    recorded = await log.append([Write("vm-1", 0, (Moved("a"), Rested())), Write("vm-2", 0, (Rested(),))], envelope())

    expected = [
        Recorded(
            seq=seq,
            stream=stream,
            version=version,
            event=event,
            time_us=NOW_US,
            node=NODE,
            epoch=EPOCH,
            tenant="default",
            actor="user:test",
            command_id="command-1",
            correlation_id="correlation-1",
            causation_id="cause-1",
        )
        for seq, stream, version, event in [
            (1, "vm-1", 1, Moved("a")),
            (2, "vm-1", 2, Rested()),
            (3, "vm-2", 1, Rested()),
        ]
    ]
    assert recorded == expected
    assert await log.read(0) == expected
    assert await log.read_stream("vm-1", 1) == expected[1:2]
    assert await log.read(0, types=["Moved"]) == expected[:1]
    assert await log.position_at(NOW_US) == 3
    async with aclosing(log.subscribe(1)) as pages:
        assert await anext(pages) == expected[1:]


async def test_a_digest_makes_a_command_recognisable(log: EventLog) -> None:
    await log.append([Write("vm-1", 0, (Rested(),))], envelope(), digest=digest_of("rest"))
    with pytest.raises(AlreadyAccepted) as repeated:
        await log.append([Write("vm-1", 1, (Rested(),))], envelope(), digest=digest_of("rest"))
    assert repeated.value.accepted == await log.accepted("default", "command-1")
    await log.append([Write("vm-1", 1, (Rested(),))], envelope("command-2"))
    assert await log.accepted("default", "command-2") is None


async def test_a_log_that_needs_a_newer_program_names_it_before_anything_is_read(log: EventLog) -> None:
    await log.append([Write("vm-1", 0, (Moved("a"), Rested()))], envelope())
    await log.check_types()

    with pytest.raises(TooNew, match=r"type Moved, schema 3, first written by aetherscale 1\.2\.0"):
        Codec([Rested]).check([StoredType("Rested", 1, "0.9.0"), StoredType("Moved", 3, "1.2.0")])


# --- the form that everybody sees ------------------------------------------------------------------------------------


def test_an_event_has_the_form_of_the_contract() -> None:
    recorded = CODEC.decode(stored("Rested", 1, payload(digest=b"\x00\xff")))
    form = event_json(recorded)

    assert list(form) == [
        *("seq", "stream", "version", "type", "schema", "time", "node", "actor"),
        *("command-id", "correlation-id", "causation-id", "data"),
    ]
    assert json.loads(msgspec.json.encode(form)) == {
        "seq": 1,
        "stream": "vm-1",
        "version": 1,
        "type": "Rested",
        "schema": 1,
        "time": "1970-01-01T00:00:00.000000Z",
        "node": "host1",
        "actor": "user:test",
        "command-id": "c",
        "correlation-id": "c",
        "causation-id": None,
        "data": {"digest": "AP8="},
    }


def test_a_stored_event_has_the_same_form_and_need_not_be_known() -> None:
    row = stored("Rested", 1, payload(digest=b"\x00\xff"))
    assert event_json(row) == event_json(CODEC.decode(row))
    unknown = event_json(stored("FromTheFuture", 8, payload(some_field=[1, {2: b"x"}])))
    assert (unknown["type"], unknown["schema"], unknown["data"]) == (
        "FromTheFuture",
        8,
        {"some-field": [1, {"2": "eA=="}]},
    )


def test_an_old_event_is_shown_as_it_was_written_and_read_as_it_is_now() -> None:
    row = stored("Moved", 1, payload(place="rack 1"))
    assert (event_json(row)["schema"], event_json(row)["data"]) == (1, {"place": "rack 1"})
    now = event_json(CODEC.decode(row))
    assert (now["schema"], now["data"]) == (3, {"to": "rack 1", "how-far-m": 1})


def test_a_payload_that_cannot_be_shown_is_damage() -> None:
    with pytest.raises(Damaged, match="not MessagePack"):
        event_json(stored("Rested", 1, b"\xc1"))
