"""The settings that the copy of the log has to have."""

from __future__ import annotations

from typing import Any

import pytest

from aetherscale.bus import streamconfig

WANTED = streamconfig.wanted(("a.>",), 1000, 10**9)


def test_a_stream_as_it_was_made_is_left_alone() -> None:
    assert streamconfig.differences({**WANTED, "name": "S", "num_replicas": 3, "compression": "s2"}, WANTED) == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sealed", True), ("no_ack", True), ("max_msgs", 10), ("max_age", 10**9), ("max_bytes", 10),
        ("max_msg_size", 9), ("max_msgs_per_subject", 1), ("discard", "new"), ("storage", "memory"),
        ("retention", "workqueue"), ("allow_direct", False), ("subjects", ["b"]),
        ("mirror", {"name": "x"}),
        ("sources", [{"name": "x"}]), ("subject_transform", {"src": "a", "dest": "b"}), ("allow_rollup_hdrs", True),
        ("duplicate_window", 5), ("sealed", "garbage"), ("max_msgs", None), ("subjects", None),
    ],
)  # fmt: skip
def test_what_would_make_it_another_copy_is_found(field: str, value: Any) -> None:
    config = {**WANTED, "name": "S", field: value}
    assert streamconfig.differences(config, WANTED) == (field,)


def test_what_a_server_leaves_out_is_unset() -> None:
    config = {name: value for name, value in WANTED.items() if name not in ("max_age", "max_msgs")}
    assert streamconfig.differences(config, WANTED) == ()
