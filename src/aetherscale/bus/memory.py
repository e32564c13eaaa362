"""The fake of NATS: a broker in memory and connections to it, with the same promises and none of the sockets.

A message is delivered in a later turn of the event loop, in order for each connection; one member of each queue group
gets it; a request without a listener is answered by a 503. `MemoryBroker.down()` is a broker that was killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from msgspec import Struct

from aetherscale.bus import protocol
from aetherscale.bus.bus import STATUS, BusUnavailable, Handler, Incoming, NoResponders, TooLarge
from aetherscale.kernel.times import to_rfc3339

log = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES: Final = 1024 * 1024


class _Route(Struct, eq=False):
    bus: MemoryBus
    subject: str
    queue: str
    handler: Handler


class MemoryBroker:
    """The broker that the connections share. `choose(n)` picks the member, 0 … n-1, of a queue group that is served."""

    def __init__(self, choose: Callable[[int], int] | None = None) -> None:
        self._choose = choose or _in_turn()
        self._routes: list[_Route] = []
        self._buses: list[MemoryBus] = []
        self._inboxes = 0
        self.is_up = True

    def connect(self, clock: Callable[[], int]) -> MemoryBus:
        """A new connection."""
        bus = MemoryBus(self, clock)
        self._buses.append(bus)
        return bus

    def down(self) -> None:
        """Be gone: what is not delivered yet is lost, and everybody knows."""
        self.is_up = False
        for bus in self._buses:
            bus._lose()

    def up(self) -> None:
        """Be back: everybody listens again to what they listened to."""
        self.is_up = True
        for bus in self._buses:
            bus._regain()

    def new_inbox(self) -> str:
        """A subject that no other client has."""
        self._inboxes += 1
        return f"_INBOX.{self._inboxes:08d}"

    def route(self, incoming: Incoming) -> None:
        """Give a message to all that listen, one member of each queue group."""
        groups: dict[str, list[_Route]] = {}
        heard = False
        for route in self._routes:
            if protocol.matches(route.subject, incoming.subject):
                heard = True
                if route.queue:
                    groups.setdefault(route.queue, []).append(route)
                else:
                    route.bus._take(route, incoming)
        for members in groups.values():
            chosen = members[self._choose(len(members))]
            chosen.bus._take(chosen, incoming)
        if not heard and incoming.reply:
            self.route(Incoming(incoming.reply, b"", {STATUS: "503"}, ""))


class _Subscription:
    def __init__(self, broker: MemoryBroker, route: _Route) -> None:
        self._broker, self._route = broker, route

    async def unsubscribe(self) -> None:
        if self._route in self._broker._routes:
            self._broker._routes.remove(self._route)


class MemoryBus:
    """One connection to a `MemoryBroker`; a `Bus`."""

    max_body_bytes = MAX_PAYLOAD_BYTES
    trouble = ""

    def __init__(self, broker: MemoryBroker, clock: Callable[[], int]) -> None:
        self._broker, self._clock = broker, clock
        self._since_us: int | None = None if broker.is_up else clock()
        self._arrived: deque[tuple[_Route, Incoming]] = deque()
        self._calls: list[Callable[[], None]] = []
        self._waiting: set[asyncio.Queue[Incoming | None]] = set()
        self._closed = False

    @property
    def disconnected_since_us(self) -> int | None:
        """When the broker went; None while it is there."""
        return self._since_us

    def inbox(self) -> str:
        """A new subject for replies."""
        return self._broker.new_inbox()

    def on_reconnect(self, call: Callable[[], None]) -> None:
        """Call back whenever the broker has come back."""
        self._calls.append(call)

    async def listen(self, subject: str, queue: str, handler: Handler) -> _Subscription:
        """Hand every message that matches to `handler`."""
        protocol.subscribe(subject, queue, 1)
        route = _Route(self, subject, queue, handler)
        self._broker._routes.append(route)
        return _Subscription(self._broker, route)

    async def publish(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Send one message, at most once."""
        protocol.publish(subject, b"", headers, reply)
        if self._since_us is not None or self._closed:
            since = f" since {to_rfc3339(self._since_us)}" if self._since_us is not None else ""
            raise BusUnavailable(f"no connection to the broker{since}")
        if len(body) + (len(protocol.encode_headers(headers)) if headers else 0) > MAX_PAYLOAD_BYTES:
            raise TooLarge(f"{subject}: a message of {len(body)} bytes, the broker takes {MAX_PAYLOAD_BYTES}")
        self._broker.route(Incoming(subject, body, dict(headers or {}), reply))

    async def request(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        """The chunks of a streamed reply."""
        chunks: asyncio.Queue[Incoming | None] = asyncio.Queue()
        reply = self.inbox()
        subscription = await self.listen(reply, "", chunks.put_nowait)
        self._waiting.add(chunks)
        try:
            await self.publish(subject, body, headers, reply=reply)
            while True:
                async with asyncio.timeout(timeout_s):
                    incoming = await chunks.get()
                if incoming is None:
                    raise BusUnavailable(f"{subject}: the broker was lost before the reply had ended")
                if incoming.is_no_responders:
                    raise NoResponders(f"no subscriber listens on {subject}")
                if incoming.ends_stream:
                    return
                yield incoming.body
        finally:
            self._waiting.discard(chunks)
            await subscription.unsubscribe()

    async def close(self) -> None:
        """Hear and say nothing more."""
        self.vanish()

    def vanish(self) -> None:
        """Be gone at once, as a connection is whose process was killed."""
        self._closed = True
        self._broker._routes = [route for route in self._broker._routes if route.bus is not self]
        if self in self._broker._buses:
            self._broker._buses.remove(self)

    def _take(self, route: _Route, incoming: Incoming) -> None:
        self._arrived.append((route, incoming))
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        if not self._arrived:
            return
        route, incoming = self._arrived.popleft()
        if route not in self._broker._routes:
            return
        try:
            route.handler(incoming)
        except Exception:
            log.exception("the handler of %s failed; the message is lost to it", route.subject)

    def _lose(self) -> None:
        self._arrived.clear()
        if self._since_us is None:
            self._since_us = self._clock()
        for waiting in self._waiting:
            waiting.put_nowait(None)

    def _regain(self) -> None:
        if self._since_us is not None:
            self._since_us = None
            for call in self._calls:
                call()


def _in_turn() -> Callable[[int], int]:
    count = 0

    def choose(members: int) -> int:
        nonlocal count
        count += 1
        return count % members

    return choose
