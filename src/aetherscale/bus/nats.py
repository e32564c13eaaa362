"""The real bus: NATS, connected for ever.

Each connection is a client of its own (`connection.py`), so that nothing of an old one outlives it: no request whose
caller gave up, no half-sent buffer, no read loop that has died. What is listened to, and who waits, is kept here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import nats.errors
from msgspec import Struct
from nats.aio.client import DEFAULT_MAX_PAYLOAD_SIZE

from aetherscale.bus import protocol
from aetherscale.bus.bus import BusUnavailable, Handler, Incoming, NoResponders, TooLarge
from aetherscale.bus.connection import Connection
from aetherscale.bus.endpoint import Endpoint, servers
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.times import to_rfc3339

log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 2.0
MAX_UNSENT_BYTES: Final = 1024 * 1024
"""A publisher waits while more than this has not left for the broker."""
TURN_BYTES: Final = 64 * 1024
"""With more than this to send, everybody else gets a turn, first of all what sends it: a broker and a caller can go to
work on the beginning of a long answer while its end is made."""
MAX_UNREAD_CHUNKS: Final = 65_536
TOKEN_BYTES: Final = 16
"""A token that cannot be guessed."""


class _Route(Struct):
    subject: str
    queue: str
    handler: Handler


class _Subscription:
    def __init__(self, bus: NatsBus, sid: int) -> None:
        self._bus, self._sid = bus, sid

    async def unsubscribe(self) -> None:
        await self._bus._forget(self._sid)


class _Waiting:
    """A request whose chunks are on their way."""

    def __init__(self) -> None:
        self.chunks: asyncio.Queue[Incoming | None] = asyncio.Queue(MAX_UNREAD_CHUNKS)
        self.broken = ""

    def put(self, incoming: Incoming) -> None:
        try:
            self.chunks.put_nowait(incoming)
        except asyncio.QueueFull:
            self.fail(f"more than {MAX_UNREAD_CHUNKS} chunks of the reply were waiting unread")

    def fail(self, why: str) -> None:
        self.broken = why
        if not self.chunks.full():
            self.chunks.put_nowait(None)


class NatsBus:
    """A `Bus` over NATS. `endpoint` is asked at each attempt, since a broker may come back elsewhere."""

    def __init__(self, endpoint: Callable[[], Endpoint], *, name: str, clock: Callable[[], int]) -> None:
        self._endpoint, self._name, self._clock = endpoint, name, clock
        self._tasks = Tasks(f"bus {name}")
        self._connection: Connection | None = None
        self._last: Connection | None = None
        self._up = asyncio.Event()
        """Set while messages can be sent."""
        self._settled = asyncio.Event()
        """Set when the broker has known, once, all that is listened to."""
        self._since_us: int | None = clock()
        self._trouble = ""
        self._routes: dict[int, _Route] = {}
        self._next_sid = 1
        self._calls: list[Callable[[], None]] = []
        self._discovered: list[str] = []
        self._waiting: dict[str, _Waiting] = {}
        self._inbox = self.inbox()
        """Below it each request has a token of its own: who answers one cannot guess where others are answered."""
        self._hears_replies = False
        self._hearing: asyncio.Event | None = None
        """The roundtrip that waits for the end of this turn of the loop."""
        self._closed = False

    async def start(self, wait_s: float) -> None:
        """Connect in the background for ever; return when connected, or after `wait_s` without."""
        self._tasks.spawn(self._stay_connected(), "connection")
        try:
            async with asyncio.timeout(wait_s):
                await self._settled.wait()
        except TimeoutError:
            log.warning("no connection to NATS yet; going on without, and trying again until there is one")

    @property
    def disconnected_since_us(self) -> int | None:
        """When the connection was lost, or wanted first; None while it stands."""
        return self._since_us

    @property
    def trouble(self) -> str:
        """Why there is no connection."""
        return self._trouble

    @property
    def max_body_bytes(self) -> int:
        """The broker's `max_payload`, which counts the headers too."""
        return self._connection.max_payload if self._connection else DEFAULT_MAX_PAYLOAD_SIZE

    def inbox(self) -> str:
        """A new subject for replies."""
        return f"_INBOX.{secrets.token_hex(TOKEN_BYTES)}"

    def on_reconnect(self, call: Callable[[], None]) -> None:
        """Call back after every reconnect, the first connect not counted."""
        self._calls.append(call)

    async def listen(self, subject: str, queue: str, handler: Handler) -> _Subscription:
        """Hand every message that matches to `handler`, now or from the next connect on."""
        sid = self._next_sid
        line = protocol.subscribe(subject, queue, sid)
        self._next_sid += 1
        self._routes[sid] = _Route(subject, queue, handler)
        if self._connection is not None and self._up.is_set():
            self._connection.send(line)
            await self._heard(self._connection)
        return _Subscription(self, sid)

    async def _forget(self, sid: int) -> None:
        known = self._routes.pop(sid, None)
        if known is not None and self._connection is not None and self._up.is_set():
            self._connection.send(protocol.unsubscribe(sid))

    async def publish(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Send one message, at most once; waits while a slow broker takes nothing."""
        message = protocol.publish(subject, body, headers, reply)
        connection = self._connection
        if connection is None or not self._up.is_set():
            raise self._unavailable()
        if len(message) > connection.max_payload and _payload_bytes(body, headers) > connection.max_payload:
            raise TooLarge(f"{subject}: a message of {len(body)} bytes, the broker takes {connection.max_payload}")
        unsent_bytes = connection.send(message)
        if unsent_bytes > MAX_UNSENT_BYTES:
            await self._roundtrip(connection)
        elif unsent_bytes > TURN_BYTES:
            await asyncio.sleep(0)

    async def request(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        """The chunks of a streamed reply."""
        if not self._hears_replies:
            self._hears_replies = True
            await self.listen(self._inbox + ".*", "", self._reply_came)
        reply = f"{self._inbox}.{secrets.token_hex(TOKEN_BYTES)}"
        waiting = self._waiting[reply] = _Waiting()
        try:
            await self.publish(subject, body, headers, reply=reply)
            while True:
                async with asyncio.timeout(timeout_s):
                    incoming = await waiting.chunks.get()
                if incoming is None:
                    raise BusUnavailable(f"{subject}: {waiting.broken}")
                if incoming.is_no_responders:
                    raise NoResponders(f"no subscriber listens on {subject}")
                if incoming.ends_stream:
                    return
                yield incoming.body
        finally:
            del self._waiting[reply]

    def _reply_came(self, incoming: Incoming) -> None:
        waiting = self._waiting.get(incoming.subject)
        if waiting is not None and not waiting.broken:
            waiting.put(incoming)

    async def close(self) -> None:
        """Send what is under way and end the connection."""
        if self._connection is not None and self._up.is_set():
            await self._roundtrip(self._connection)
        self._closed = True
        self._up.clear()
        await self._tasks.close()
        if self._last is not None:
            await self._last.end()

    async def _stay_connected(self) -> None:
        retry_s, told, connected_before = FIRST_RETRY_S, "", False
        # nats-py swallows some cancellations; `_closed` ends the loop all the same.
        while not self._closed:
            connection = self._last = Connection(self._deliver)
            try:
                await self._connect(connection)
            except Exception as failure:
                unexpected = not isinstance(failure, (OSError, nats.errors.Error, TimeoutError, ValueError))
                self._trouble = self._reason(connection, failure)
                if unexpected or self._trouble != told:
                    log.warning("cannot connect to NATS: %s; trying again", self._trouble, exc_info=unexpected)
                told = self._trouble
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
                continue
            if connected_before:
                log.info("connected to NATS again")
                for call in self._calls:
                    call()
            retry_s, told, connected_before = FIRST_RETRY_S, "", True
            try:
                if not self._closed:
                    await connection.lost.wait()
            finally:
                self._disconnected()
                await connection.end()

    async def _connect(self, connection: Connection) -> None:
        endpoint = self._endpoint()
        urls = [server.url for server in servers(endpoint)]
        await connection.open(list(dict.fromkeys([*urls, *self._discovered])), endpoint, self._name)
        try:
            self._discovered = [url.geturl() for url in connection.discovered_servers]
            lines = [protocol.subscribe(route.subject, route.queue, sid) for sid, route in self._routes.items()]
            self._connection = connection
            self._up.set()
            connection.send(b"".join(lines))
            await connection.roundtrip()
        except BaseException:
            self._disconnected()
            await connection.end()
            raise
        self._since_us = None
        self._trouble = ""
        self._settled.set()

    def _disconnected(self) -> None:
        self._up.clear()
        self._connection = None
        if self._since_us is None:
            self._since_us = self._clock()
            if not self._closed:
                log.warning("the connection to NATS is lost; trying again until it is back")
        for waiting in self._waiting.values():
            waiting.fail("the connection to NATS was lost before the reply had ended")

    def _deliver(self, sid: int, incoming: Incoming) -> None:
        route = self._routes.get(sid)
        if route is None:
            return
        try:
            route.handler(incoming)
        except Exception:
            log.exception("the handler of %s failed; the message is lost to it", route.subject)

    async def _heard(self, connection: Connection) -> None:
        """As `_roundtrip`; those who ask in one turn of the loop, as at the start of a node, share one."""
        if self._hearing is None:
            self._hearing = self._begin_to_ask(connection)
        await self._hearing.wait()

    def _begin_to_ask(self, connection: Connection) -> asyncio.Event:
        """An event that is set when the round trip has ended, also where it is cancelled before its first step."""
        ended = asyncio.Event()
        asked = self._tasks.spawn(self._ask_at_the_end_of_the_turn(connection), "roundtrip")
        asked.add_done_callback(lambda _: ended.set())
        return ended

    async def _ask_at_the_end_of_the_turn(self, connection: Connection) -> None:
        await asyncio.sleep(0)
        self._hearing = None
        await self._roundtrip(connection)

    async def _roundtrip(self, connection: Connection) -> None:
        """Wait until the broker has all that was sent before; give the connection up where it does not answer."""
        try:
            await connection.roundtrip()
        except (nats.errors.Error, OSError) as failure:
            log.warning("NATS does not answer (%r); connecting anew", failure)
            await connection.close()

    def _reason(self, connection: Connection, failure: Exception) -> str:
        """Why a connection was not made, without anything that may be a secret."""
        if connection.said:
            return protocol.meaning(connection.said)
        if isinstance(failure, OSError) and failure.strerror:
            return failure.strerror
        text = str(failure)
        if text.startswith("nats: '"):
            return protocol.meaning(text.removeprefix("nats: "))
        return text.splitlines()[0][:300] if text else type(failure).__name__

    def _unavailable(self) -> BusUnavailable:
        since = f" since {to_rfc3339(self._since_us)}" if self._since_us is not None else ""
        return BusUnavailable(f"no connection to NATS{since}; trying again all the time")


def _payload_bytes(body: bytes, headers: Mapping[str, str] | None) -> int:
    return len(body) + (len(protocol.encode_headers(headers)) if headers else 0)
