"""Which position a moment means, in a log of a host whose clock may have gone back. Pure.

Positions never go back, times may: a moment then lies in more than one place. What is meant is the first of them: the
last event before the first one that is later. Where none is later the clock may have gone back for good, and what was
written under the smaller times was written after the moment: so it is the last event that has the greatest time.

    position  1    2    3    4    5
    time      100  200  150  300  50
    moment    150 ─▶ 1    200 ─▶ 3    299 ─▶ 3    999 ─▶ 4
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Around(NamedTuple):
    """The position of a moment among some events; the default among none."""

    later: int | None = None
    """The first position with a later time."""
    greatest_us: int = -1
    latest: int = 0
    """The last position with the greatest time, where none is later than the moment."""

    @property
    def position(self) -> int:
        """The position that the moment means; 0 for before the first event."""
        return self.latest if self.later is None else self.later - 1


def around(times: Iterable[tuple[int, int]], time_us: int, before: Around = Around()) -> Around:  # noqa: B008 - immutable
    """The position of a moment after some more events, each a position and a time."""
    if before.later is not None:
        return before
    _, greatest_us, latest = before
    for position, at_us in times:
        if at_us > time_us:
            return Around(position, greatest_us, latest)
        if at_us >= greatest_us:
            greatest_us, latest = at_us, position
    return Around(None, greatest_us, latest)
