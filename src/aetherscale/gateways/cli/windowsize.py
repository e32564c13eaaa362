"""Hears that the window of this terminal has another size."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


class Resized:
    """Whether the window has another size, from SIGWINCH; `fileno` is readable when it has."""

    def __init__(self) -> None:
        self._news, self._tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # What has changed since the size was last looked at is looked at once more.
        self._hear(signal.SIGWINCH, None)
        self._before = signal.signal(signal.SIGWINCH, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        with suppress(BlockingIOError):  # what was said before has not been heard yet
            os.write(self._tell, b"!")

    def fileno(self) -> int:
        """For `poll`."""
        return self._news

    def is_new(self) -> bool:
        """Whether it has changed since this was last asked."""
        try:
            return bool(os.read(self._news, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Hear no more."""
        signal.signal(signal.SIGWINCH, self._before)
        os.close(self._news)
        os.close(self._tell)
