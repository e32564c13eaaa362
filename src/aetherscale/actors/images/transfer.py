"""What copying and downloading a file have in common: limits, progress, failure, and stopping."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

Progress = Callable[[int, int | None], None]
"""Is told how many bytes are there, and how many there will be where that is known."""

CHUNK_BYTES: Final = 1 << 20
_BETWEEN_REPORTS_S: Final = 0.1


class FetchFailed(Exception):
    """A file did not come in. `hint` says what to do; where it is `retryable`, trying again goes on where it ended."""

    def __init__(self, reason: str, hint: str, *, retryable: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.retryable = retryable


class Limits(Struct, frozen=True):
    """How long a server may take: to accept a connection, TLS included, and between two pieces of what it sends."""

    connect_s: float = 15.0
    idle_s: float = 60.0


class Stopped(Exception):
    """The transfer was told to stop. Seen by nobody outside, since who told it is not waiting for an answer."""


class Transfer:
    """One transfer into a file beside the event loop: how far it is, and whether it has been told to stop."""

    def __init__(self, part: Path, size_cap_bytes: int, report: Progress) -> None:
        self.part = part
        self._cap_bytes = size_cap_bytes
        self._report = report
        self._reported_at_s = 0.0
        self._lock = threading.Lock()
        self._stopped = False
        self._socket: socket.socket | None = None

    def stop(self) -> None:
        """Make the thread of the transfer end soon, also one that waits for a server."""
        with self._lock:
            self._stopped = True
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # the server was faster

    def watch(self, connection: socket.socket) -> None:
        """Have `stop` end this connection, which the transfer waits for. Raises Stopped."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            # A descriptor of our own: the connection may be closed, and its number used again, at any time.
            self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self.go_on()

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def go_on(self) -> None:
        """Raises Stopped once the transfer was told to stop."""
        if self._stopped:
            raise Stopped

    def advance(self, done_bytes: int, total_bytes: int | None) -> None:
        """Report how far it is, not too often. Raises Stopped."""
        self.go_on()
        if (now_s := time.monotonic()) - self._reported_at_s >= _BETWEEN_REPORTS_S:
            self._reported_at_s = now_s
            self._report(done_bytes, total_bytes)

    def require_room(self, done_bytes: int, total_bytes: int | None) -> None:
        """Raises FetchFailed when what has come, or what was announced, is more than is allowed."""
        size_bytes = max(done_bytes, total_bytes or 0)
        if size_bytes > self._cap_bytes:
            raise FetchFailed(
                f"it has {size_bytes} bytes or more, and {self._cap_bytes} are allowed",
                "import a smaller image",
                retryable=False,
            )


def open_part(part: Path, *, keep: bool = False) -> int:
    """A descriptor of the part file, 0600: empty, or with what it has where `keep` is set. Follows no symbolic link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if keep else os.O_TRUNC)
    descriptor = os.open(part, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor
