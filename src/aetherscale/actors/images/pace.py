"""How far a piece of work is, as callers are told of it: bytes, rate, and time left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from aetherscale.runtime.component import Progress

WINDOW_S: Final = 10.0
"""The rate is that of the last seconds."""
_LEAST_S: Final = 1.0


class Pace:
    """Tells one phase of a piece of work. `clock` is in seconds, and is never set back."""

    def __init__(self, progress: Progress, phase: str, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._phase = phase
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def tell(self, done_bytes: int, total_bytes: int | None) -> None:
        """So much is done, of so much where that is known."""
        now_s = self._clock()
        if self._seen and done_bytes < self._seen[-1][1]:
            self._seen.clear()  # it began anew
        self._seen.append((now_s, done_bytes))
        while now_s - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()
        began_s, began_bytes = self._seen[0]
        rate = int((done_bytes - began_bytes) / (now_s - began_s)) if now_s - began_s >= _LEAST_S else None
        left_s = round((total_bytes - done_bytes) / rate) if rate and total_bytes is not None else None
        self._progress(self._phase, done_bytes=done_bytes, total_bytes=total_bytes, rate_bytes_s=rate, left_s=left_s)
