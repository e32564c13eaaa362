"""Moments as a human at a terminal reads them: how long ago, or in the time of the place where they sit.

Pipes and JSON have RFC 3339 in UTC; see `aetherscale.kernel.times`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from aetherscale.kernel.times import SECOND_US, from_rfc3339

NOW_S: Final = 5
"""A moment that is no longer ago is now; clocks that differ by less are one."""
_UNITS: Final = (
    ("year", 365 * 86400),
    ("month", 30 * 86400),
    ("day", 86400),
    ("hour", 3600),
    ("minute", 60),
    ("second", 1),
)


def ago(time: str, now_us: int) -> str:
    """`3 minutes ago`, in the largest unit that is full; a moment that is still to come by our clock is shown whole."""
    passed_s = (now_us - from_rfc3339(time)) // SECOND_US
    if passed_s < -NOW_S:
        return local(time)
    return f"{lasted(passed_s)} ago" if passed_s > NOW_S else "just now"


def lasted(seconds: float) -> str:
    """`3 minutes`, in the largest unit that is full."""
    for unit, size in _UNITS:
        if seconds >= size:
            amount = int(seconds // size)
            return f"{amount} {unit}{'' if amount == 1 else 's'}"
    return "0 seconds"


def local(time: str) -> str:
    """`2026-01-31 13:00:00` where we are."""
    return _here(time).strftime("%Y-%m-%d %H:%M:%S")


def local_clock(time: str) -> str:
    """`13:00:00.250` where we are."""
    here = _here(time)
    return f"{here:%H:%M:%S}.{here.microsecond // 1000:03}"


def local_with_zone(time: str) -> str:
    """`2026-01-31 13:00:00 +01:00` where we are, with how far that is from UTC."""
    zone = _here(time).strftime("%z")
    return f"{local(time)} {zone[:3]}:{zone[3:5]}"


def short_id(full: str) -> str:
    """The beginning of an id, which commands take for the whole."""
    return full[:8]


def _here(time: str) -> datetime:
    return datetime.fromisoformat(time).astimezone()
