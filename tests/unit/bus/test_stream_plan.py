"""What follows from what the broker's copy and the log say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.bus.streamplan import (
    Continue,
    Create,
    Halt,
    LogState,
    Plan,
    Rebuild,
    SetAside,
    StreamState,
    plan,
)

SUBJECTS = ("aether.v1.*.evt.n1.>",)
MAX_BYTES = 100 * 1024 * 1024
LOG = LogState(node="n1", epoch="0b", head=9, id_at_tip="n1.0b.7")
GOOD = StreamState(first_seq=1, last_seq=7, messages=7, deleted=0, size_bytes=7000, subjects=SUBJECTS, tip_id="n1.0b.7")
FULL = 99 * 1024 * 1024


def decide(stream: StreamState | None, log: LogState = LOG) -> Plan:
    return plan(stream, log, SUBJECTS, MAX_BYTES)


def test_where_there_is_no_stream_one_is_made() -> None:
    assert decide(None) == Create(1)


def test_a_stream_that_is_the_beginning_of_the_log_is_continued() -> None:
    assert decide(GOOD) == Continue(7)
    assert decide(GOOD, replace(LOG, head=7)) == Continue(7)


def test_an_empty_stream_that_never_had_anything_is_continued() -> None:
    assert decide(replace(GOOD, first_seq=0, last_seq=0, messages=0, tip_id="")) == Continue(0)


def test_a_stream_may_have_dropped_its_oldest_events_for_want_of_room() -> None:
    assert decide(replace(GOOD, first_seq=4, messages=4, size_bytes=FULL)) == Continue(7)


def test_a_stream_may_end_in_an_earlier_epoch_of_the_same_log() -> None:
    log = LogState(node="n1", epoch="0c", head=9, id_at_tip="n1.0b.7")
    assert decide(GOOD, log) == Continue(7)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"messages": 6}, "1 of its events are missing"),
        ({"messages": 6, "deleted": 1}, "1 of its events are missing"),
        ({"first_seq": 3, "messages": 5}, "events before 3 are missing"),
        ({"subjects": ("other.>",)}, "subjects"),
        ({"tip_id": ""}, "not event 7"),
        ({"tip_id": "spam"}, "not event 7"),
        ({"tip_id": "n2.0b.7"}, "not event 7"),
        ({"tip_id": "n1.0b.6"}, "not event 7"),
        ({"tip_id": "n1.0a.6"}, "not event 7"),
        ({"tip_id": "n1.../..7"}, "not event 7"),
        ({"tip_id": "n1.>.7"}, "not event 7"),
        ({"first_seq": 8, "messages": 0, "tip_id": ""}, "all its events are missing"),
        ({"first_seq": 0, "last_seq": 0, "messages": 0, "tip_id": "", "subjects": ()}, "subjects"),
    ],
)
def test_a_stream_that_lost_or_gained_something_is_made_anew(changes: dict[str, Any], why: str) -> None:
    decided = decide(replace(GOOD, **changes))
    assert isinstance(decided, Rebuild)
    assert decided.first_seq == 1
    assert why in decided.why


def test_a_foreign_message_beyond_the_log_is_no_reason_to_stop() -> None:
    foreign = replace(GOOD, last_seq=10, messages=10, tip_id="")
    assert isinstance(decide(foreign, replace(LOG, id_at_tip="")), Rebuild)


def test_a_stream_that_had_dropped_its_oldest_events_is_not_made_longer_again() -> None:
    decided = decide(replace(GOOD, first_seq=4, messages=3, size_bytes=FULL))
    assert isinstance(decided, Rebuild)
    assert decided.first_seq == 4


@pytest.mark.parametrize(
    "log", [replace(LOG, epoch="0c", id_at_tip="n1.0c.7"), replace(LOG, epoch="0c", head=2, id_at_tip="")]
)
def test_events_of_another_log_are_set_aside(log: LogState) -> None:
    assert decide(GOOD, log) == SetAside("0b")


def test_nothing_is_published_to_a_stream_that_is_ahead_of_its_log() -> None:
    decided = decide(GOOD, replace(LOG, head=5, id_at_tip=""))
    assert isinstance(decided, Halt)
    assert "up to 7" in decided.why
    assert "only up to 5" in decided.why
