"""Heartbeats as strangers forge them: read as strictly as commands are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.bus import beats
from aetherscale.bus.beats import MAX_BEAT_BYTES, MAX_LINE_CHARACTERS, MAX_PEERS, MAX_TROUBLES, Beat
from aetherscale.kernel.errors import Reason, Refused

OLD: dict[str, Any] = {
    "node": "n1", "epoch": "0e", "seq": 7, "version": "0.1.0", "time": "2026-01-01T00:00:00.000000Z",
}  # fmt: skip
FULL: dict[str, Any] = {
    **OLD, "instance": "i-1", "head-seq": 7, "head-hash": "a" * 64, "cpus": 4, "memory-mib": 8, "vms": 2,
    "vms-running": 1, "troubles": ["the disk is full"], "peers": ["n2"],
}  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def encode(**changes: Any) -> bytes:
    return msgspec.json.encode({**FULL, **{name.replace("_", "-"): value for name, value in changes.items()}})


def test_a_beat_of_the_first_version_is_read_and_what_a_newer_one_adds_is_passed_over() -> None:
    assert beats.read(msgspec.json.encode(OLD)).head_hash == ""
    read = beats.read(encode(color="green"), "aether.v1.sys.hb.n1")
    assert (read.head_seq, read.head_hash, read.cpus, read.troubles) == (7, "a" * 64, 4, ("the disk is full",))
    assert beats.read(msgspec.json.encode(read)) == read


@pytest.mark.parametrize(
    "changes",
    [
        {"node": "n1\nweb"}, {"node": "n1\x1b[2J"}, {"node": ""}, {"node": 7}, {"node": "N1"}, {"node": "n1\u202e"},
        {"epoch": "0e\n"}, {"epoch": "x" * 65}, {"version": "0.1\x1b]0;x\x07"}, {"time": "now"}, {"time": "\n"},
        {"seq": -1}, {"seq": 2**63}, {"seq": 1.5}, {"seq": "7"}, {"seq": True}, {"head_hash": "A" * 64},
        {"instance": "a b"}, {"troubles": ["a\nb"]}, {"troubles": ["\x9b2J"]}, {"troubles": "no list"},
        {"peers": ["a b"]}, {"peers": [None]}, {"vms": None}, {"cpus": -4},
    ],
)  # fmt: skip
def test_what_no_node_says_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        beats.read(encode(**changes))


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b"\xff", b'"n1"', b"[" * 50_000, b'{"node":' * 5000, b'{"node":"n1","node":"n2"}'],
)
def test_what_is_no_beat_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        beats.read(body)


def test_a_beat_beyond_its_bounds_is_refused() -> None:
    largest = beats.read(encode(troubles=["x" * MAX_LINE_CHARACTERS] * MAX_TROUBLES, peers=["n2"] * MAX_PEERS))
    assert (len(largest.troubles), len(largest.peers)) == (MAX_TROUBLES, MAX_PEERS)
    for changes in (
        {"troubles": ["x" * (MAX_LINE_CHARACTERS + 1)]},
        {"troubles": ["x"] * (MAX_TROUBLES + 1)},
        {"peers": ["n2"] * (MAX_PEERS + 1)},
    ):
        with pytest.raises(Refused):
            beats.read(encode(**changes))
    with pytest.raises(Refused) as refused:
        beats.read(encode(more="x" * MAX_BEAT_BYTES))
    assert refused.value.reason == Reason.TOO_LARGE


def test_a_beat_speaks_for_the_node_of_its_subject_alone() -> None:
    with pytest.raises(Refused):
        beats.read(encode(), "aether.v1.sys.hb.n2")


@given(st.binary(max_size=60) | JSON.map(msgspec.json.encode))
def test_whatever_comes_is_a_beat_or_refused(body: bytes) -> None:
    try:
        read = beats.read(body)
    except Refused:
        return
    assert isinstance(read, Beat)


@given(st.sampled_from(sorted(FULL)), JSON)
def test_whatever_a_field_is_no_control_character_comes_through(field: str, value: Any) -> None:
    try:
        read = beats.read(encode(**{field.replace("-", "_"): value}))
    except (Refused, msgspec.MsgspecError, ValueError, OverflowError):
        return
    texts = [read.node, read.epoch, read.version, read.time, read.instance, *read.troubles, *read.peers]
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for text in texts for character in text)


@given(st.text(max_size=2000))
def test_every_text_can_be_made_a_line(text: str) -> None:
    made = beats.line(text)
    assert beats.read(encode(troubles=[made])).troubles == (made,)
