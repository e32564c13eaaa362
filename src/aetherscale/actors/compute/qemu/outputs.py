"""What a program in a guest writes to a port, up to the mark behind it, which tells the program's exit status."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import suppress

from aetherscale.actors.compute.qemu.plugs import LAST_WORDS_S


class MarkedOutput:
    """One port. `piece_bytes` is the most that is read of it at once."""

    def __init__(self, token: str, piece_bytes: int) -> None:
        self.status: int | None = None
        """What the mark says, once it has come."""
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None
        self._mark = re.compile(rb"\x1e%s-(\d{1,3})\x1e" % token.encode())
        self._longest = len(token) + 6
        self._piece_bytes = piece_bytes
        self._held = b""
        self._is_over = False
        self._has_port_closed = False
        self._patience: asyncio.Timeout | None = None
        """Of the read that is under way."""

    async def connect(self, ours: socket.socket) -> None:
        """Take over our end of its port."""
        self.reader, self.writer = await asyncio.open_connection(sock=ours, limit=self._piece_bytes)

    async def next(self) -> bytes:
        """Some more of it; empty at its end."""
        while not self._is_over:
            data = await self._more()
            self._held += data
            if found := self._mark.search(self._held):
                self.status = int(found[1])
                self._held = self._held[: found.start()]
            self._is_over = not data or self.status is not None
            # What may be the beginning of the mark is kept until it is known to be none.
            at = -1 if self._is_over else self._held.rfind(b"\x1e", max(0, len(self._held) - self._longest))
            ready, self._held = (self._held, b"") if at < 0 else (self._held[:at], self._held[at:])
            if ready:
                return ready
        return b""

    async def _more(self) -> bytes:
        if self.writer is None:
            return b""
        try:
            async with asyncio.timeout(LAST_WORDS_S if self._has_port_closed else None) as self._patience:
                return await self.reader.read(self._piece_bytes)
        except (OSError, TimeoutError):
            return b""

    def port_closed(self) -> None:
        """The guest has let go of the port. What it has written before may be on its way."""
        self._has_port_closed = True
        if self._patience is not None and not self._patience.expired():
            with suppress(RuntimeError):  # as where nobody waits
                self._patience.reschedule(asyncio.get_running_loop().time() + LAST_WORDS_S)

    def let_go(self) -> None:
        """One of the two ends has gone."""
        if self.writer is not None:
            self.writer.transport.abort()
