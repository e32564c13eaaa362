"""The common parts of copying and downloading a file: limits, progress, failure, and stopping."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aetherscale.kernel.fault import Fault

if TYPE_CHECKING:
    from aetherscale.actors.images.fetching.addresses import Network

Progress = Callable[[int, int | None], None]
"""Called with how many bytes are there, and how many there will be where that is known."""

CHUNK_BYTES: Final = 1 << 20
_BETWEEN_REPORTS_S: Final = 0.1


class Limits(Struct, frozen=True):
    """The demands on a server, and where it may be.

    It accepts a connection, TLS included, in `connect_s`, is silent for `idle_s` at most, and sends `pace_bytes` in
    each `pace_s`, or `crowded_bytes` while others wait for their turn. A connection that breaks is made again after
    `again_s` as long as each one brings `progress_bytes`. `networks` may be reached though they are not public.
    """

    connect_s: float = 15.0
    idle_s: float = 60.0
    pace_s: float = 60.0
    pace_bytes: int = 512 * 1024
    crowded_bytes: int = 8 * 1024 * 1024
    progress_bytes: int = 16 * 1024
    again_s: float = 1.0
    networks: tuple[Network, ...] = ()


class Stopped(Exception):
    """The transfer was stopped. Not seen outside, since the caller that stopped it does not wait for an answer."""


class Transfer:
    """One transfer into a file beside the event loop: how far it is, and whether it has been stopped."""

    def __init__(self, part: Path, size_cap_bytes: int, report: Progress) -> None:
        self.part = part
        self.received_bytes = 0
        """The bytes that came over the network, repeated ones included."""
        self.most_bytes = 0
        """How far it has been."""
        self.is_arriving = False
        """Whether it waits for a server."""
        self._cap_bytes = size_cap_bytes
        self._report = report
        self._reported_at_s = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._failure: Fault | None = None
        self._socket: socket.socket | None = None

    def stop(self, failure: Fault | None = None) -> None:
        """Make the thread of the transfer end soon, also one that waits for a server; by a failure, if there is one."""
        with self._lock:
            self._failure = failure
            self._stopped.set()
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # the server was faster

    def watch(self, connection: socket.socket) -> None:
        """Have `stop` end this connection, which the transfer waits for. Raises as `go_on`."""
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
        """Raises Stopped once the transfer was stopped, or the failure that was given for it."""
        if self._stopped.is_set():
            raise self._failure or Stopped

    def pause(self, seconds: float) -> None:
        """Wait. Raises as `go_on`."""
        self._stopped.wait(seconds)
        self.go_on()

    def advance(self, done_bytes: int, total_bytes: int | None) -> None:
        """Report how far it is, not too often. Raises as `go_on`."""
        self.go_on()
        self.most_bytes = max(self.most_bytes, done_bytes)
        if (now_s := time.monotonic()) - self._reported_at_s >= _BETWEEN_REPORTS_S:
            self._reported_at_s = now_s
            self._report(done_bytes, total_bytes)

    def require_allowed(self, done_bytes: int, total_bytes: int | None) -> None:
        """Raises Fault when what has come, or what was announced, is more than is allowed."""
        size_bytes = max(done_bytes, total_bytes or 0)
        if size_bytes > self._cap_bytes:
            raise Fault(
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
