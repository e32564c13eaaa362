"""One streamed reply: chunks as JSON messages, a sign of life while there is nothing to say, an end that always comes.

Every message has the header `Aether-Node`, an error also `Nats-Service-Error` and `Nats-Service-Error-Code`. The end is
an empty message without headers (ADR-47's sentinel). Where all nodes answer one request, each sends one message and no
end: chunks of the type `item` are then put into the result as `items`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aetherscale.bus import refusals
from aetherscale.bus.bus import Bus, BusUnavailable, TooLarge
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel import replies, wire
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.replies import Chunk, Kept

NODE: Final = "Aether-Node"
ERROR: Final = "Nats-Service-Error"
ERROR_CODE: Final = "Nats-Service-Error-Code"


_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_MAX_ERROR_CHARACTERS = 300


log = logging.getLogger(__name__)


class Answer:
    """The reply to one request, on all subjects that wait for it; on none the work is done all the same."""

    def __init__(
        self,
        bus: Bus,
        tasks: Tasks,
        node: str,
        targets: Sequence[str],
        *,
        fan_out: bool,
        keepalive_s: float,
        deserted: str = "",
    ) -> None:
        """`deserted` is where the broker may say that the reply has no listener any more."""
        self._bus, self._tasks, self._deserted = bus, tasks, deserted
        self._headers = {NODE: node}
        self._targets = targets
        self._fan_out = fan_out
        self._items: list[Mapping[str, Any]] = []
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._over = self._ended = False
        if targets and not fan_out:
            self._timer = self._loop.call_later(keepalive_s, self._keep_alive)

    async def send(self, chunk: Chunk) -> None:
        """Send one chunk; nothing more after the final one.

        A broker that is away is no reason to stop: the caller is away too.
        """
        if self._over:
            return
        self._over = replies.is_final(chunk)
        if not self._fan_out:
            await self._publish(chunk)
        elif chunk["type"] == "item":
            self._items.append({name: value for name, value in chunk.items() if name != "type"})
        elif self._over:
            await self._publish({**chunk, "items": self._items} if self._items else chunk)

    async def end(self) -> None:
        """Send the end, once."""
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._fan_out:
            await self._send(b"", None)

    async def _publish(self, chunk: Chunk) -> None:
        headers = self._headers
        if chunk["type"] == "error":
            headers = {**headers, **error_headers(chunk)}
        try:
            await self._send(_encoded(chunk), headers)
        except TooLarge as too_large:
            self._over = True
            if chunk["type"] == "error" and chunk["error"] == Reason.TOO_LARGE:
                log.warning("not even an error can be answered: %s; raise the broker's max_payload", too_large)
                return
            await self._publish(refusals.error(Refused(Reason.TOO_LARGE, f"the answer is too large: {too_large}")))

    async def _send(self, body: bytes, headers: Mapping[str, str] | None, *, ask: bool = False) -> None:
        try:
            for target in self._targets:
                await self._bus.publish(target, body, headers, reply=self._deserted if ask else "")
        except BusUnavailable:
            self._targets = ()
        except asyncio.CancelledError:
            # It is not known whether it was sent. A caller without an end asks again; one with a wrong end does not.
            self._targets = ()
            raise

    def _keep_alive(self) -> None:
        # Also while there is much to say: it asks the broker whether the reply has a listener.
        self._tasks.spawn(self._say_working(), "keepalive")
        self._timer = self._loop.call_later(self._keepalive_s, self._keep_alive)

    async def _say_working(self) -> None:
        if not self._over:
            working = replies.status("working", elapsed_s=int(self._loop.time() - self._begun))
            await self._send(wire.encode(working), self._headers, ask=len(self._targets) == 1)


def _encoded(chunk: Chunk) -> bytes:
    if not isinstance(chunk, Kept):
        return wire.encode(chunk)
    if chunk.encoded is None:
        chunk.encoded = wire.encode(chunk)
    return chunk.encoded


def error_headers(chunk: Chunk) -> dict[str, str]:
    """The headers by which clients of the NATS services API know an error."""
    text = _UNPRINTABLE.sub(" ", str(chunk["message"]))[:_MAX_ERROR_CHARACTERS].strip()
    return {ERROR: text or str(chunk["error"]), ERROR_CODE: str(chunk["code"])}
