"""Moments as people type them: `5m`, `yesterday`, `16:00`, `2026-11-28`, RFC 3339. Pure.

A time without an offset from UTC is of the user's time zone. A day begins at its midnight there, whatever its length;
`1d` is 24 hours. A time of day that a change of the clock leaves out is read as if the clock had not changed, and of
one that comes twice the first is meant: an offset tells them apart.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Final

from aetherscale.kernel.times import SECOND_US

EXPECTED: Final = (
    "a time like 16:00, yesterday, today, tomorrow, 2026-11-28 or 2026-11-28T16:00:00Z, or how long ago, like 5m or 2h"
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAYS: Final = {"yesterday": -1, "today": 0, "tomorrow": 1}
_PART: Final = re.compile(r"([0-9]{1,9}) ?(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?|w|weeks?)(?![a-z])[ ,]*")
_AGO: Final = re.compile(rf"-?((?:{_PART.pattern})+)(?:ago)?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_CLOCK: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?")


def from_text(text: str, now_us: int, zone: tzinfo | None = None) -> int:
    """A moment in microseconds since 1970 UTC; `now_us` is the time now, `zone` None for that of the process.

    Raises ValueError, which says what was expected.
    """
    words = " ".join(text.lower().split())
    try:
        if words == "now":
            return now_us
        if (long_ago_s := ago_s(words)) is not None:
            long_ago = timedelta(seconds=long_ago_s)
            return (_EPOCH + timedelta(microseconds=now_us) - long_ago - _EPOCH) // timedelta(microseconds=1)
        return _microseconds(_on_a_day(words, now_us, zone) or datetime.fromisoformat(text.strip()), zone)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"expected {EXPECTED}") from None


def ago_s(text: str) -> int | None:
    """How long ago, for what says that, like `5m`; None for anything else."""
    ago = _AGO.fullmatch(" ".join(text.lower().split()))
    return None if ago is None else sum(int(n) * _SECONDS[unit[0]] for n, unit in _PART.findall(ago[1]))


def _on_a_day(words: str, now_us: int, zone: tzinfo | None) -> datetime | None:
    """`16:00` or `yesterday 16:00` as the clock on the wall shows it; None for anything else."""
    day, _, clock = words.rpartition(" ") if words not in _DAYS else (words, "", "")
    shown = _CLOCK.fullmatch(clock)
    if (day not in _DAYS and day) or not (shown or (day in _DAYS and not clock)):
        return None
    today = datetime.fromtimestamp(now_us // SECOND_US, zone).date()
    hour, minute, second, fraction = shown.groups() if shown else ("0", "0", None, None)
    at = time(int(hour), int(minute), int(second or 0), int((fraction or "").ljust(6, "0")))
    return datetime.combine(today + timedelta(days=_DAYS.get(day, 0)), at)


def _microseconds(moment: datetime, zone: tzinfo | None) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone) if zone is not None else moment.astimezone()
    return (moment - _EPOCH) // timedelta(microseconds=1)
