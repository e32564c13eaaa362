"""The virtio-serial ports of a guest. A port that the guest floods is read at a bounded rate."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable
from typing import Final, cast

from aetherscale.actors.compute.model.firstboot import MAX_OUTPUT_BYTES, MOST_STATUS, InitOutcome, shown_output

RATE_LIMIT_BYTES: Final = 256 * 1024
"""The bytes that are read of one port in a second, unless an answer is being waited for."""
LINE_LIMIT_BYTES: Final = 4 * 1024
INIT_LINE_BYTES: Final = 8 * 1024
"""The longest line about an init script: 4 KiB of output in base64, and what is before it."""


class Port(asyncio.Protocol):
    """The node's end of a port. Subclasses say in `received` what they make of the bytes."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._read_bytes = 0
        self._window_end_s = 0.0
        self._rest: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether QEMU still holds the other end."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send to the guest; kept by the kernel and QEMU until the guest opens its end."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Let go of the port."""
        if self._rest is not None:
            self._rest.cancel()
        if self._transport is not None:
            self._transport.abort()

    def received(self, data: bytes) -> None:
        """Take bytes from the guest."""
        raise AssertionError("a port must say what it does with what it reads")

    def hurried(self) -> bool:
        """Whether an answer is being waited for, which is bounded by its own limit."""
        return False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        # Another loop's transport, as uvloop's, has the methods and not the class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if not self.hurried():
            self._restrain(len(data))
        self.received(data)

    def _restrain(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._window_end_s:
            self._read_bytes, self._window_end_s = 0, loop.time() + 1
        self._read_bytes += count
        if self._read_bytes > RATE_LIMIT_BYTES and self._transport is not None and self._rest is None:
            self._transport.pause_reading()
            self._rest = loop.call_at(self._window_end_s, self.resume)

    def resume(self) -> None:
        """Read on."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
            if self.is_open and self._transport is not None:
                self._transport.resume_reading()


class ReadyPort(Port):
    """Our own channel: the guest sends the line `ready` once it is up, and again when it is asked with `?`."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        super().__init__()
        self._on_ready = on_ready
        self._line = bytearray()

    def ask(self) -> None:
        """Ask a guest that may have said it earlier. One that is not up yet finds the question later."""
        self.write(b"?\n")

    def received(self, data: bytes) -> None:
        """Look for the line `ready`; other lines, and all of a line beyond the limit, are nothing."""
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line[:] = rest[:LINE_LIMIT_BYTES]
        if any(line.strip() == b"ready" for line in lines):
            self._on_ready()


OnInitEnded = Callable[[InitOutcome, int | None, str], None]


class InitPort(Port):
    """The guest sends a line once its init script has ended, and again when it is asked with `?`.

    `ended STATUS OUTPUT`, `interrupted - OUTPUT` or `not-run - OUTPUT`, where OUTPUT is the end of what was printed, in
    base64. The first that is well-formed counts; nothing is read after it, so that a guest that goes on has to wait.
    """

    def __init__(self, on_ended: OnInitEnded) -> None:
        super().__init__()
        self._on_ended = on_ended
        self._line = bytearray()
        self._is_told = False

    def ask(self) -> None:
        """Ask a guest that may have said it earlier. One that has nothing to say yet finds the question later."""
        self.write(b"?\n")

    def resume(self) -> None:
        """As in `Port`, unless all has been said."""
        if not self._is_told:
            super().resume()

    def received(self, data: bytes) -> None:
        """Look for the line; others, and all of a line beyond the limit, are nothing."""
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line[:] = rest[: INIT_LINE_BYTES + 1]
        for line in lines:
            if not self._is_told and (told := told_end(line)) is not None:
                self._is_told = True
                if self._transport is not None:
                    self._transport.pause_reading()
                self._on_ended(*told)


_TOLD: Final = re.compile(rb"(?:(ended) ([0-9]{1,3})|(interrupted|not-run) -) ([A-Za-z0-9+/]*={0,2})")


def told_end(line: bytes) -> tuple[InitOutcome, int | None, str] | None:
    """The outcome, exit status and output in a line of the guest; None for a line that is not of this form."""
    match = _TOLD.fullmatch(line.rstrip(b"\r")) if len(line) <= INIT_LINE_BYTES else None
    if match is None:
        return None
    try:
        output = base64.b64decode(match[4], validate=True)
    except binascii.Error:
        return None
    status = int(match[2]) if match[2] else None
    if len(output) > MAX_OUTPUT_BYTES or (status or 0) > MOST_STATUS:
        return None
    outcome: InitOutcome = "ended" if match[1] else "interrupted" if match[3] == b"interrupted" else "not-run"
    return outcome, status, shown_output(output)
