"""Another program that changes the same thing again and again, as fast as it is put back: it shall not fill the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

TOLD_AT_ONCE: Final = 10
"""Changes of one device, or of the rules, that are told as they happen, in `WITHIN_S`."""
WITHIN_S: Final = 60.0


class Fights:
    """Counts what was told of each thing. `now_s` is a clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._told: dict[str, deque[float]] = {}

    def is_one(self, name: str) -> bool:
        """Whether so much was told of a thing that the next is left to the timer; else this is counted."""
        now_s = self._now_s()
        self._told = {each: told for each, told in self._told.items() if told[-1] > now_s - WITHIN_S}
        told = self._told.get(name, deque(maxlen=TOLD_AT_ONCE))
        if len(told) == TOLD_AT_ONCE and told[0] > now_s - WITHIN_S:
            return True
        told.append(now_s)
        self._told[name] = told
        return False
