"""Writing to stdout beside everything else: a terminal may take its time, and its keyboard is to be heard meanwhile."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

from aetherscale.gateways.cli.standard import Unwritable

PIECE_BYTES: Final = 1024
"""The bytes that are written at a time: output can be dropped only before it is written."""


class Screen:
    """A descriptor that is written to by a thread of its own. `fileno` is readable when there is news of it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pieces: deque[tuple[bytes, int]] = deque()
        self._more = threading.Condition()
        self._shown = 0
        self._busy = False
        self._news, self._tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.failure: OSError | None = None
        """Why nothing can be written any more."""
        threading.Thread(target=self._run, name="screen", daemon=True).start()

    def fileno(self) -> int:
        """For `poll`."""
        return self._news

    def show(self, data: bytes, worth: int) -> None:
        """Write this after what is waiting; `worth` is what it counts in `shown`."""
        with self._more:
            self._pieces.append((data, worth))
            self._more.notify()

    def shown(self) -> int:
        """How many bytes of the guest's output have been shown since the last call."""
        with suppress(BlockingIOError):  # there may be none
            os.read(self._news, 4096)
        with self._more:
            shown, self._shown = self._shown, 0
            return shown

    def is_idle(self) -> bool:
        """Whether everything has been written, or never will be."""
        with self._more:
            return self.failure is not None or not (self._pieces or self._busy)

    def is_done(self) -> bool:
        """Whether everything has been written. Raises as `require_reader`, also for what failed a moment ago."""
        is_idle = self.is_idle()
        self.require_reader()
        return is_idle

    def require_reader(self, events: Mapping[int, int] = MappingProxyType({})) -> None:
        """By what `poll` said, and by what became of writing.

        Raises `BrokenPipeError` where nobody reads any more, `Unwritable` where nothing is taken.
        """
        if self.failure is not None and self.failure.errno != errno.EPIPE:
            raise Unwritable(self.failure)
        if self.failure is not None or events.get(self._descriptor):
            raise BrokenPipeError

    def drop(self) -> None:
        """Forget what has not been written yet."""
        with self._more:
            self._pieces.clear()

    def _run(self) -> None:
        while True:
            with self._more:
                self._busy = False
                while not self._pieces:
                    self._more.wait()
                data, worth = self._pieces.popleft()
                self._busy = True
            try:
                self._write(data)
            except OSError as error:
                self.failure = error
                self._say()
                return
            with self._more:
                self._shown += worth
                self._busy = bool(self._pieces)
            self._say()

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data[:PIECE_BYTES]) :]
            except BlockingIOError:
                # Another program has made it so, for all that share it.
                select.select((), [self._descriptor], ())

    def _say(self) -> None:
        with suppress(BlockingIOError):  # what was said before has not been heard yet
            os.write(self._tell, b"!")
