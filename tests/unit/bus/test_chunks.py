"""Answers as strangers forge them: one node, one object, and the shape that each part has to have."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.bus.bus import Incoming
from aetherscale.bus.chunks import MAX_CHUNK_BYTES, BadAnswer, Reply

ID, OTHER = "0123456789abcdef", "1123456789abcdef"
VM: dict[str, Any] = {
    "id": ID, "name": "web", "node": "n1", "phase": "ready", "requested": "running", "observed": "running",
    "since": "2026-01-01T00:00:00.000000Z", "image": "tiny", "cpus": 1, "memory-mib": 128, "disk-gib": 1,
    "restart": "never", "autostart": True, "ports": [], "failure": None, "revision": 3, "labels": {"a": "b"},
    "accelerator": "tcg", "isolation": "none", "paused-reason": None, "restarts": 0, "exit": None,
    "ready-by": "channel",
}  # fmt: skip


def say(chunk: Any, node: str = "n1", subject: str = "s") -> Incoming:
    body = chunk if isinstance(chunk, bytes) else msgspec.json.encode(chunk)
    return Incoming(subject, body, {"Aether-Node": node} if node else {}, "")


def test_a_nodes_answer_is_read_with_whatever_a_newer_node_adds() -> None:
    reply = Reply("s")
    for chunk in (
        {"type": "status", "status": "allocating", "vm-id": ID, "name": "web"},
        {"type": "status", "status": "working", "elapsed-s": 30, "mood": [1]},
        {"type": "result", "vm-id": ID, "vm": {**VM, "color": "green"}},
    ):
        assert reply.read(say(chunk)) == chunk


@pytest.mark.parametrize(
    "chunk",
    [
        b"", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"type":"status","status":"x","a":' + b"[" * 40 + b"]" * 40 + b"}",
        {}, {"type": "event"}, {"type": "status"}, {"type": "status", "status": "a b"}, {"type": "error"},
        {"type": "error", "code": 404}, {"type": "error", "code": "404", "message": "x"},
        {"type": "error", "code": 200, "message": "x"}, {"type": "error", "code": 404, "message": "x", "details": []},
        {"type": "status", "status": "starting", "vm-id": "../../etc"}, {"type": "item", "vm": "web"},
        {"type": "item", "vm": {**VM, "name": "web\nrow"}}, {"type": "item", "vm": {**VM, "cpus": "many"}},
        {"type": "item", "vm": {**VM, "since": 7}}, {"type": "item", "vm": {**VM, "phase": "\x1b[2J"}},
        {"type": "item", "vm": {**VM, "labels": {"a": "b\nc"}}}, {"type": "item", "vm": {"id": ID}},
        {"type": "item", "data": "no base64!"}, {"type": "item", "text": 7}, {"type": "result", "count": -1},
        {"type": "status", "status": "stopping", "grace-s": "long"}, {"type": "status", "status": "x", "node": "a.b"},
        {"type": "result", "exit-code": "0"},
        b'{"type":"status","status":"x","pad":"' + b"x" * MAX_CHUNK_BYTES + b'"}',
    ],
)  # fmt: skip
def test_what_no_node_says_is_no_answer(chunk: Any) -> None:
    with pytest.raises(BadAnswer, match=r"^the answer on s is not a node's: "):
        Reply("s").read(say(chunk))


def test_an_answer_comes_from_one_node() -> None:
    reply = Reply("s")
    reply.read(say({"type": "status", "status": "allocating", "vm-id": ID}))
    with pytest.raises(BadAnswer, match="different nodes"):
        reply.read(say({"type": "result", "vm-id": ID, "vm": VM}, node="n2"))


@pytest.mark.parametrize(
    "second",
    [
        {"type": "status", "status": "starting", "vm-id": OTHER},
        {"type": "result", "vm-id": OTHER, "vm": {**VM, "id": OTHER}},
        {"type": "result", "vm-id": ID, "vm": {**VM, "id": OTHER}},
    ],
)
def test_an_answer_is_about_one_object(second: Any) -> None:
    reply = Reply("s")
    reply.read(say({"type": "status", "status": "allocating", "vm-id": ID}))
    with pytest.raises(BadAnswer, match="another object"):
        reply.read(say(second))


def test_a_list_is_about_many() -> None:
    reply = Reply("s")
    for vm_id in (ID, OTHER):
        reply.read(say({"type": "item", "vm-id": vm_id, "vm": {**VM, "id": vm_id}}))
    reply.read(say({"type": "result", "count": 2}))


@given(
    st.sampled_from(sorted(VM)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_whatever_a_field_of_a_view_is_it_is_an_answer_or_none(field: str, value: Any) -> None:
    try:
        chunk = Reply("s").read(say({"type": "item", "vm": {**VM, field: value}}))
    except BadAnswer:
        return
    assert set(chunk["vm"]) == set(VM)
