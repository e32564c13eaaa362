"""The port to the message broker. `nats.py` is the real one, `memory.py` its twin; one contract suite runs on both.

The bus moves bytes. What a message means is decided in `ingress.py` (requests in, streamed replies out).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from msgspec import Struct


class Incoming(Struct, frozen=True):
    """A message as it came: subject, body, headers, and where an answer goes ("" where none is wanted)."""

    subject: str
    body: bytes
    headers: Mapping[str, str]
    reply: str


Handler = Callable[[Incoming], None]
"""Called for each message in the order of arrival. It returns at once: longer work goes into a task of its own."""


class Subscription(Protocol):
    async def unsubscribe(self) -> None: ...


class BusUnavailable(Exception):
    """The broker cannot be reached now; says since when."""


class NoResponders(Exception):
    """Nobody listens on the subject of a request."""


class Bus(Protocol):
    """A connection that never gives up: it reconnects for ever and listens again to all that it listened to."""

    @property
    def disconnected_since_us(self) -> int | None:
        """When the connection was lost; None while it stands."""
        ...

    async def listen(self, subject: str, queue: str, handler: Handler) -> Subscription:
        """Hand every message that matches to `handler`; with a queue name, one member of the queue gets it."""
        ...

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send one message; at most once. Raises `BusUnavailable` rather than to keep it for later."""
        ...

    def request(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        """The chunks of a streamed reply, without the empty message that ends it.

        `timeout_s` bounds the silence before each chunk. Raises `NoResponders`, `TimeoutError`, `BusUnavailable`.
        """
        ...

    def on_reconnect(self, call: Callable[[], None]) -> None:
        """Call back after every reconnect."""
        ...

    async def close(self) -> None: ...
