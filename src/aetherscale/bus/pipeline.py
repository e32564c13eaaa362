"""Publishing into a JetStream stream: in order, each message at the position that it must get, many under way at once.

A client that listens to the published messages sees where their acknowledgements go, and can forge one. So each has a
subject that cannot be guessed before, and what a forged one makes us believe lasts until the stream is compared with
the log.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

from aetherscale.bus import apianswers
from aetherscale.bus.bus import Incoming, Subscription, TooLarge
from aetherscale.bus.jetstream import EXPECTED_LAST, EXPECTED_STREAM, MESSAGE_ID, Stream, StreamError

WINDOW: Final = 256
"""Messages under way at one time."""
ACK_TIMEOUT_S: Final = 5.0
"""Nothing stored for so long while something is under way: another subscriber got it, or none."""


class Pipeline:
    """Messages on their way into a stream, in order, each at the position that it must get; many under way at once.

    The first one that does not get its position fails the pipeline: every later one is refused too. `on_failure` is
    called then, from within the loop. Use as a context.
    """

    def __init__(
        self,
        stream: Stream,
        after: int,
        *,
        window: int = WINDOW,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        on_failure: Callable[[], None],
    ) -> None:
        self._stream, self._window, self._ack_timeout_s = stream, window, ack_timeout_s
        self._on_failure = on_failure
        self._sent = self.stored = after
        self._failure: StreamError | None = None
        self._changed = asyncio.Event()
        self._inbox = stream.bus.inbox()
        self._awaited: dict[str, int] = {}
        """The positions of what is under way, by the last token of where its acknowledgement goes."""
        self._subscription: Subscription | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._stream.bus.listen(f"{self._inbox}.*", "", self._acknowledged)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def publish(self, subject: str, body: bytes, message_id: str, headers: Mapping[str, str]) -> None:
        """Send the next message; waits where too many are under way. Raises `StreamError`, `BusUnavailable`."""
        if self._sent - self.stored >= self._window:
            await self._until(lambda: self._sent - self.stored <= self._window // 2)
        if self._failure is not None:
            raise self._failure
        previous, self._sent = self._sent, self._sent + 1
        fields = {
            MESSAGE_ID: message_id,
            EXPECTED_LAST: str(previous),
            EXPECTED_STREAM: self._stream.name,
            **headers,
        }
        if self._watch is None:
            self._watch_from(self.stored)
        token = secrets.token_hex(8)
        self._awaited[token] = self._sent
        try:
            await self._stream.bus.publish(subject, body, fields, reply=f"{self._inbox}.{token}")
        except TooLarge as too_large:
            raise StreamError(f"message {self._sent}: {too_large}; raise the broker's max_payload") from None

    async def drained(self) -> None:
        """Wait until everything that was sent is stored. Raises `StreamError`."""
        await self._until(lambda: self.stored >= self._sent)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while self._failure is None and not holds():
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def _acknowledged(self, incoming: Incoming) -> None:
        seq = self._awaited.pop(incoming.subject.rpartition(".")[2], 0)
        if not seq:
            return
        failure = apianswers.ack_failure(incoming, self._stream.name, seq)
        if failure:
            self._fail(f"message {seq}: {failure}")
        elif self._failure is None:
            self.stored = max(self.stored, seq)
        self._changed.set()

    def _watch_from(self, stored: int) -> None:
        """Look again later whether more than `stored` is stored by then."""
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(self._ack_timeout_s, self._look, stored)

    def _look(self, stored_before: int) -> None:
        self._watch = None
        if self.stored == stored_before:
            self._fail(f"nothing was stored for {self._ack_timeout_s:g} s")
        elif self.stored < self._sent:
            self._watch_from(self.stored)

    def _fail(self, why: str) -> None:
        if self._failure is None:
            self._failure = StreamError(f"stream {self._stream.name}, {why}")
            self._changed.set()
            self._on_failure()
