"""Many readers of one serial line. A reader that is too slow loses its own oldest bytes, and learns how many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

RECENT_BYTES: Final = 64 * 1024
"""The bytes that the line keeps for later readers."""
READER_LIMIT_BYTES: Final = 256 * 1024
"""The bytes that may wait for one reader."""


def last_lines(data: bytes, count: int) -> bytes:
    """The last lines of a text, of which the very last may not be ended yet."""
    at = len(data)
    for _ in range(count + data.endswith(b"\n")):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return data
    return data[at + 1 :] if count else b""


Send = Callable[[bytes], Awaitable[None]]
"""Type into the line. Raises `Refused` where it has ended."""


class Readers:
    """Hands on what the guest writes. `past` is what it wrote before."""

    def __init__(self, send: Send, past: bytes = b"") -> None:
        self._send = send
        self._recent = bytearray(past[-RECENT_BYTES:])
        self._readers: list[Reader] = []
        self._ended = False

    @property
    def recent(self) -> bytes:
        """The last that the guest wrote."""
        return bytes(self._recent)

    def attach(self, past: bytes | None = None) -> Reader:
        """A new reader, which gets `past` first, by default the recent past."""
        reader = Reader(self._send, self._detach, self.recent if past is None else past)
        if self._ended:
            reader.finish()
        else:
            self._readers.append(reader)
        return reader

    def attach_with(self, past_bytes: int) -> Reader:
        """A new reader, which gets so much of the recent past first."""
        return self.attach(self.recent[max(0, len(self.recent) - past_bytes) :])

    def feed(self, data: bytes) -> None:
        """Take what the guest wrote."""
        self._recent += data
        del self._recent[:-RECENT_BYTES]
        for reader in self._readers:
            reader.feed(data)

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        for reader in self._readers:
            reader.finish()
        self._readers.clear()

    def _detach(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)


class Reader:
    """One reader; it is a `Console`."""

    def __init__(self, send: Send, detach: Callable[[Reader], None], past: bytes) -> None:
        self._send = send
        self._detach = detach
        self.past_bytes = len(past)
        """How much of the output, from its beginning, was there when the reader came."""
        self._past = past
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost_bytes = 0
        self._news = asyncio.Event()
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take what the guest wrote; the oldest is dropped where too much is waiting."""
        self._chunks.append(data)
        self._waiting_bytes += len(data)
        while self._waiting_bytes > READER_LIMIT_BYTES and len(self._chunks) > 1:
            dropped = self._chunks.popleft()
            self._waiting_bytes -= len(dropped)
            self._lost_bytes += len(dropped)
        self._news.set()

    def finish(self) -> None:
        """There will be no more."""
        self._ended = True
        self._news.set()

    async def output(self) -> AsyncIterator[bytes]:
        """Bytes from the guest, first the recent past; ends when the VM's process does, or at `close`."""
        while True:
            self._news.clear()
            if self._past:
                past, self._past = self._past, b""
                yield past
            elif self._lost_bytes:
                lost, self._lost_bytes = self._lost_bytes, 0
                yield b"\r\n[%d bytes lost: this reader was too slow]\r\n" % lost
            elif self._chunks:
                data = b"".join(self._chunks)
                self._chunks.clear()
                self._waiting_bytes = 0
                yield data
            elif self._ended:
                return
            else:
                await self._news.wait()

    async def send(self, data: bytes) -> None:
        """Type into the serial line; waits while the guest takes nothing.

        Raises `Refused` (conflict) where it has ended.
        """
        await self._send(data)

    async def close(self) -> None:
        """Stop to read; the line goes on."""
        self._detach(self)
        self.finish()
