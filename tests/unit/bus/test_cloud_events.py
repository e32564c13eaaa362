"""Recorded events as CloudEvents."""

from __future__ import annotations

import msgspec
import pytest

from aetherscale.bus import cloudevents
from aetherscale.kernel.messages import Event, Recorded


class VmBooted(Event, frozen=True):
    boot_count: int
    note: str = ""


RECORDED = Recorded(
    seq=42, stream="vm-0123456789abcdef", version=3, event=VmBooted(boot_count=1), time_us=1_700_000_000_000_001,
    node="n1", epoch="0b", tenant="acme", actor="user:nats", command_id="c", correlation_id="r", causation_id=None,
)  # fmt: skip


def test_an_event_is_a_cloud_event_with_our_extensions() -> None:
    assert msgspec.json.decode(cloudevents.encode(RECORDED, 10_000)) == {
        "specversion": "1.0",
        "id": "n1.0b.42",
        "source": "/aetherscale/nodes/n1",
        "type": "io.aetherscale.VmBooted",
        "subject": "vm-0123456789abcdef",
        "time": "2023-11-14T22:13:20.000001Z",
        "datacontenttype": "application/json",
        "sequence": "00000000000000000042",
        "streamversion": 3,
        "actor": "user:nats",
        "commandid": "c",
        "correlationid": "r",
        "data": {"boot-count": 1, "note": ""},
    }


def test_what_caused_it_is_told_where_something_did() -> None:
    caused = msgspec.structs.replace(RECORDED, causation_id="n1.0b.41")
    assert msgspec.json.decode(cloudevents.encode(caused, 10_000))["causationid"] == "n1.0b.41"


def test_its_subject_names_node_object_and_event() -> None:
    assert cloudevents.subject(RECORDED) == "aether.v1.acme.evt.n1.vm.0123456789abcdef.vm-booted"


def test_one_that_is_too_large_for_a_broker_goes_without_its_data_and_says_so() -> None:
    large = msgspec.structs.replace(RECORDED, event=VmBooted(1, "\x01" * 1000))
    body = cloudevents.encode(large, 1000)
    assert len(body) <= 1000
    told = msgspec.json.decode(body)
    assert told["dataomitted"] is True
    assert "data" not in told


@pytest.mark.parametrize(
    ("published", "agrees"),
    [
        (cloudevents.encode(RECORDED, 10_000), True),
        (cloudevents.encode(RECORDED, 10_000).replace(b',"note":""', b""), True),
        (cloudevents.encode(RECORDED, 10_000).replace(b'"boot-count":1', b'"boot-count":2'), False),
        (cloudevents.encode(RECORDED, 10_000).replace(b'"boot-count":1', b'"boot-count":true'), False),
        (cloudevents.encode(RECORDED, 10_000).replace(b'"boot-count"', b'"boot-kount"'), False),
        (cloudevents.encode(RECORDED, 10_000).replace(b"n1.0b.42", b"n1.0b.43"), False),
        (cloudevents.encode(RECORDED, 10_000)[:-1], False),
        (b"\x00", False),
        (b"", False),
        (b"[" * 100_000, False),
    ],
)
def test_an_older_version_may_have_said_less_but_nothing_else(published: bytes, agrees: bool) -> None:
    assert cloudevents.agrees(published, cloudevents.encode(RECORDED, 10_000)) is agrees
