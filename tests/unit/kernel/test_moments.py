"""Moments as people type them, in the time zone of whoever does."""

from __future__ import annotations

import time
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

import pytest

from aetherscale.kernel.moments import EXPECTED, from_text
from aetherscale.kernel.times import from_rfc3339, to_rfc3339

BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")
NOW_US = from_rfc3339("2026-11-28T15:30:45.250000Z")


def read(text: str, zone: tzinfo = UTC, now: str = "2026-11-28T15:30:45.250000Z") -> str:
    return to_rfc3339(from_text(text, from_rfc3339(now), zone)).replace(".000000Z", "Z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-28T15:30:45.250000Z"),
        ("0s", "2026-11-28T15:30:45.250000Z"),
        ("5m", "2026-11-28T15:25:45.250000Z"),
        ("-5m", "2026-11-28T15:25:45.250000Z"),
        ("5 minutes ago", "2026-11-28T15:25:45.250000Z"),
        ("5 min", "2026-11-28T15:25:45.250000Z"),
        ("90s", "2026-11-28T15:29:15.250000Z"),
        ("1h30m", "2026-11-28T14:00:45.250000Z"),
        ("1 hour, 30 minutes ago", "2026-11-28T14:00:45.250000Z"),
        ("1d", "2026-11-27T15:30:45.250000Z"),
        ("2 weeks ago", "2026-11-14T15:30:45.250000Z"),
        ("today", "2026-11-28T00:00:00Z"),
        ("yesterday", "2026-11-27T00:00:00Z"),
        ("Yesterday", "2026-11-27T00:00:00Z"),
        ("tomorrow", "2026-11-29T00:00:00Z"),
        ("16:00", "2026-11-28T16:00:00Z"),
        ("6:05", "2026-11-28T06:05:00Z"),
        ("16:00:30", "2026-11-28T16:00:30Z"),
        ("16:00:30.5", "2026-11-28T16:00:30.500000Z"),
        ("  16:00 ", "2026-11-28T16:00:00Z"),
        ("today 16:00", "2026-11-28T16:00:00Z"),
        ("yesterday 16:00", "2026-11-27T16:00:00Z"),
        ("2026-11-20", "2026-11-20T00:00:00Z"),
        ("2026-11-20 16:00", "2026-11-20T16:00:00Z"),
        ("2026-11-20T16:00:00", "2026-11-20T16:00:00Z"),
        ("2026-11-20T16:00:00Z", "2026-11-20T16:00:00Z"),
        ("2026-11-20T16:00:00.123456Z", "2026-11-20T16:00:00.123456Z"),
        ("2026-11-20T16:00:00+02:00", "2026-11-20T14:00:00Z"),
    ],
)
def test_what_people_type(text: str, expected: str) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    "wrong",
    ["", " ", "5", "5x", "m", "m5", "5m 7", "five minutes", "16", "25:00", "16:60", "16:00:61", "16:0", "2026-13-01",
     "2026-11-31", "yesterday noon", "noon", "1 mo", "5mm", "today today", "16:00 yesterday", "9999999999d",
     "999999999w",      "٥m", "１６:00", "-", "ago", "2026-11-28T16:00:00+99:00", "\x00"],
)  # fmt: skip
def test_anything_else_is_told_what_was_expected(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected a time like 16:00, yesterday") as refused:
        from_text(wrong, NOW_US, UTC)
    assert str(refused.value) == f"expected {EXPECTED}"


def test_what_has_no_offset_is_of_the_zone_of_whoever_types_it() -> None:
    assert read("16:00", BERLIN) == "2026-11-28T15:00:00Z"
    assert read("2026-11-28", BERLIN) == "2026-11-27T23:00:00Z"
    assert read("2026-07-28", BERLIN) == "2026-07-27T22:00:00Z"
    assert read("2026-11-28T16:00:00", KOLKATA) == "2026-11-28T10:30:00Z"
    assert read("2026-11-28T16:00:00Z", KOLKATA) == "2026-11-28T16:00:00Z"
    # Today is the day that it is there.
    assert read("today", KOLKATA, "2026-11-28T19:00:00Z") == "2026-11-28T18:30:00Z"
    assert read("yesterday", ZoneInfo("America/New_York"), "2026-11-28T03:00:00Z") == "2026-11-26T05:00:00Z"


def test_a_day_is_a_day_where_the_clock_is_changed_and_1d_is_24_hours() -> None:
    spring, autumn = "2026-03-29T20:00:00Z", "2026-10-25T20:00:00Z"
    assert read("today", BERLIN, spring) == "2026-03-28T23:00:00Z"
    assert read("yesterday", BERLIN, "2026-03-30T20:00:00Z") == "2026-03-28T23:00:00Z"
    assert read("16:00", BERLIN, spring) == "2026-03-29T14:00:00Z"
    assert read("1d", BERLIN, spring) == "2026-03-28T20:00:00Z"
    assert read("today", BERLIN, autumn) == "2026-10-24T22:00:00Z"
    assert read("yesterday 16:00", BERLIN, "2026-10-26T20:00:00Z") == "2026-10-25T15:00:00Z"
    # Left out, and twice: the first one.
    assert read("02:30", BERLIN, spring) == "2026-03-29T01:30:00Z"
    assert read("02:30", BERLIN, autumn) == "2026-10-25T00:30:00Z"
    assert read("2026-10-25T02:30:00+01:00", BERLIN, autumn) == "2026-10-25T01:30:00Z"


@pytest.mark.parametrize(("zone", "expected"), [("Europe/Berlin", "15:00"), ("UTC", "16:00"), ("Asia/Tokyo", "07:00")])
def test_without_a_zone_it_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch, zone: str, expected: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert to_rfc3339(from_text("2026-11-28 16:00", NOW_US)) == f"2026-11-28T{expected}:00.000000Z"
        assert from_text("16:00", from_rfc3339("2026-11-28T12:00:00Z")) == from_text("2026-11-28 16:00", NOW_US)
    finally:
        monkeypatch.undo()
        time.tzset()
