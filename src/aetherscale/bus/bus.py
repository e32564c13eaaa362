"""The port to the message broker. `nats.py` is the real one, `memory.py` its fake; one contract suite runs on both.

The bus moves bytes. What a message means is decided in `ingress.py` (requests in, streamed replies out).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Protocol

from msgspec import Struct

STATUS: Final = "Status"
"""Header in which the server itself speaks: `503` on an empty message says that the subject has no listener."""


class Incoming(Struct, frozen=True):
    """A message as it came: subject, body, headers, and where an answer goes ("" where none is wanted)."""

    subject: str
    body: bytes
    headers: Mapping[str, str]
    reply: str

    @property
    def is_no_responders(self) -> bool:
        """Whether the server says that the subject of a request has no listener. Ask this first."""
        return not self.body and self.headers.get(STATUS) == "503"

    @property
    def ends_stream(self) -> bool:
        """Whether this is the empty message without headers that ends a streamed reply."""
        return not self.body and not self.headers


Handler = Callable[[Incoming], None]
"""Called for each message in the order of arrival. It returns at once: longer work goes into a task of its own."""


class Subscription(Protocol):
    """A subscription, as `listen` returns it, to end it."""

    async def unsubscribe(self) -> None:
        """Hear no more; a message that is already here is dropped. Twice is once."""
        ...


class BusUnavailable(Exception):
    """The broker cannot be reached now; says since when."""


class NotAuthorized(BusUnavailable):
    """The broker is there and refuses our credentials; trying again does not help, mending them does."""


class NoResponders(Exception):
    """The subject of a request has no listener."""


class TooLarge(Exception):
    """A message is larger than the broker takes; it was not sent, and sending it again does not help."""


class Bus(Protocol):
    """A connection that never gives up: it reconnects for ever and listens again to all that it listened to."""

    @property
    def disconnected_since_us(self) -> int | None:
        """When the connection was lost; None while it stands."""
        ...

    @property
    def trouble(self) -> str:
        """Why there is no connection, for a human; "" while it stands, or where nothing is known yet."""
        ...

    @property
    def max_body_bytes(self) -> int:
        """The most bytes that the broker takes for headers and body of one message."""
        ...

    def inbox(self) -> str:
        """A new subject for replies, which no other client has or can guess, not even from another one."""
        ...

    async def listen(self, subject: str, queue: str, handler: Handler) -> Subscription:
        """Hand every message that matches to `handler`; with a queue name, one member of the queue gets it.

        On return the broker knows of it, or will as soon as it can be reached. ValueError for a malformed subject.
        """
        ...

    async def publish(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Send one message; at most once. Raises `BusUnavailable` rather than to keep it for later.

        Raises `TooLarge`, and ValueError for a malformed subject or header (a wildcard is malformed here).
        """
        ...

    def request(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        """The chunks of a streamed reply, without the empty message that ends it.

        `timeout_s` bounds the silence before each chunk. Raises `NoResponders`, `TimeoutError`, and `BusUnavailable`
        also when the connection is lost on the way, since chunks may then be missing.
        """
        ...

    def on_reconnect(self, call: Callable[[], None]) -> None:
        """Call back after every reconnect."""
        ...

    async def close(self) -> None:
        """Send what is under way, then hear and say nothing more."""
        ...
