"""What JetStream answers, and what somebody else answers in its place."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.bus import apianswers
from aetherscale.bus.apianswers import MAX_ANSWER_BYTES, Ack, Got, Info, Kept, MalformedAnswer
from aetherscale.bus.bus import Incoming


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"state":{"first_seq":-1}}', b'{"state":{"first_seq":"1"}}',
        b'{"config":[]}', b'{"error":"no"}', b'{"error":{"code":"x"}}', b"x" * (MAX_ANSWER_BYTES + 1),
    ],
)  # fmt: skip
def test_what_jetstream_never_says_is_no_answer(body: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        apianswers.read(body, Info)


@given(st.binary(max_size=80))
def test_whatever_comes_is_an_answer_or_none(body: bytes) -> None:
    for kind in (Info, Got, Ack):
        try:
            apianswers.read(body, kind)
        except MalformedAnswer:
            continue


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"stream":"S","seq":7}', ""),
        (b'{"stream":"S","seq":7,"duplicate":true}', ""),
        (b'{"stream":"S","seq":8}', "stored at 8"),
        (b'{"stream":"T","seq":7}', "stored in 'T'"),
        (b'{"seq":7}', "stored in ''"),
        (b'{"stream":"S","seq":0,"error":{"err_code":10071,"description":"wrong\\nlast"}}', "wrong last"),
        (b'{"stream":"S","seq":"7"}', "not an acknowledgement"),
        (b"garbage\nERROR forged", "not an acknowledgement"),
    ],
)
def test_an_acknowledgement_is_for_this_stream_and_position(body: bytes, why: str) -> None:
    found = apianswers.ack_failure(Incoming("i", body, {}, ""), "S", 7)
    assert (why in found) if why else not found
    assert "\n" not in found


@pytest.mark.parametrize("text", ["", "0", "-1", "²", "1e3", "9" * 30, "1\n", " 1", "0x1"])
def test_what_is_no_position_is_none(text: str) -> None:
    assert apianswers.position(Incoming("i", b"", {"Nats-Sequence": text}, "")) == 0


def test_headers_that_are_no_base64_are_named() -> None:
    with pytest.raises(MalformedAnswer):
        apianswers.header(Kept("%%%"), "Nats-Msg-Id")
    assert apianswers.header(msgspec.convert({}, Kept), "Nats-Msg-Id") == ""
