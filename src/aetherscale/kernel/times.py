"""Moments as integer microseconds since 1970 UTC inside, as RFC 3339 with six digits and `Z` outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_WITHOUT_ZONE = _EPOCH.replace(tzinfo=None)
SECOND_US = 1_000_000


def to_rfc3339(moment_us: int) -> str:
    """`2026-01-31T12:00:00.000000Z`; sorts as text in the order of time."""
    moment = _EPOCH_WITHOUT_ZONE + timedelta(microseconds=moment_us)
    return f"{moment.isoformat(timespec='microseconds')}Z"


def from_rfc3339(text: str) -> int:
    """The inverse of `to_rfc3339`; also takes offsets, fewer digits, and a date alone. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)
