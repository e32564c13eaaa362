"""The real bus: NATS through nats-py, connected for ever.

nats-py connects, authenticates and keeps the connection alive. It does neither of two things. It does not reconnect:
each connection here is a client of its own, so that nothing of an old one (requests whose caller gave up, half-sent
buffers, a read loop that has died) outlives it. And it does not parse: one subject that is not UTF-8, which any
client can publish, ends its read loop without a word; `protocol.Parser` reads in its place. See docs/decisions/0020.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Final

import nats.errors
from msgspec import Struct
from nats.aio.client import DEFAULT_MAX_PAYLOAD_SIZE, Client
from nats.nuid import NUID
from nats.protocol.parser import Parser as NatsParser

from aetherscale.bus import protocol
from aetherscale.bus.bus import BusUnavailable, Handler, Incoming, NoResponders, TooLarge
from aetherscale.bus.endpoint import Endpoint
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.times import to_rfc3339

log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 2.0
CONNECT_TIMEOUT_S: Final = 2
PING_INTERVAL_S: Final = 10
ROUNDTRIP_TIMEOUT_S: Final = 10
MAX_UNSENT_BYTES: Final = 1024 * 1024
"""A publisher waits while more than this has not left for the broker."""
MAX_UNREAD_CHUNKS: Final = 65_536


class _Reader(NatsParser):
    """Stands where nats-py has its parser: reads with ours, and leaves to nats-py what is not a message."""

    def __init__(self, client: _Connection, deliver: Callable[[int, Incoming], None]) -> None:
        super().__init__(client)
        self._deliver = deliver

    def reset(self) -> None:
        super().reset()
        self._parser = protocol.Parser()

    async def parse(self, data: bytes = b"") -> None:
        try:
            frames = self._parser.feed(data)
        except protocol.ProtocolError as broken:
            raise nats.errors.ProtocolError from broken
        for frame in frames:
            if isinstance(frame, protocol.Delivery):
                self._deliver(frame.sid, frame.incoming)
            else:
                await self.nc.control(frame)
        # nats-py goes on as long as bytes are here; what they lead to has to have its turn too.
        await asyncio.sleep(0)


class _Connection(Client):
    """One connection from its beginning to its end; it never reconnects."""

    def __init__(self, deliver: Callable[[int, Incoming], None]) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self._why: Exception | None = None
        self._ps = _Reader(self, deliver)

    async def open(self, servers: list[str], endpoint: Endpoint, name: str) -> None:
        """Connect to one of the servers, or raise OSError, nats.errors.Error or TimeoutError."""
        try:
            await self.connect(
                servers,
                name=name,
                user=endpoint.user or None,
                password=endpoint.password or None,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                pending_size=0,
                error_cb=self._on_error,
            )
        except BaseException as failure:
            await self.end()
            if isinstance(failure, nats.errors.NoServersError) and self._why is not None:
                raise self._why from None
            raise

    async def end(self) -> None:
        """Close, also where a cancellation has left nats-py half closed."""
        await self.close()
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
            with suppress(OSError):
                await self._transport.wait_closed()  # type: ignore[no-untyped-call]

    async def send(self, data: bytes) -> None:
        """Hand bytes to the flusher, in order."""
        await self._send_command(data)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def roundtrip(self) -> None:
        """Wait until the server has all that was sent before. Raises TimeoutError and nats.errors.Error.

        nats-py's `flush` waits in a way that can swallow the cancellation of its caller.
        """
        ponged = asyncio.get_running_loop().create_future()
        if self.lost.is_set():
            raise nats.errors.ConnectionClosedError
        await self._send_ping(ponged)
        async with asyncio.timeout(ROUNDTRIP_TIMEOUT_S):
            await ponged

    async def control(self, frame: protocol.Control) -> None:
        """What the server says about the connection."""
        match frame.verb:
            case "PING":
                await self._process_ping()
            case "PONG":
                try:
                    await self._process_pong()
                except asyncio.InvalidStateError:
                    log.debug("a pong came after its waiter had given up")
            case "-ERR":
                log.warning("nats-server says: %s", frame.argument)
                await self._process_err(frame.argument.lower())
            case "INFO":
                await self._process_info(frame.info())
            case _:
                pass

    async def _on_error(self, error: Exception) -> None:
        self._why = error
        log.debug("nats: %r", error)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # nats-py tells nobody of a close in which the last bytes could not be written.
        try:
            await super()._close(status, do_cbs)
        except OSError as failure:
            log.debug("nats: %r while closing", failure)
        finally:
            self.lost.set()
            for waiter in self._pongs:
                if not waiter.done():
                    waiter.set_exception(nats.errors.ConnectionClosedError())


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
        self._connection: _Connection | None = None
        self._last: _Connection | None = None
        self._up = asyncio.Event()
        """Set while messages can be sent."""
        self._settled = asyncio.Event()
        """Set when the broker has known, once, all that is listened to."""
        self._since_us: int | None = clock()
        self._routes: dict[int, _Route] = {}
        self._next_sid = 1
        self._calls: list[Callable[[], None]] = []
        self._discovered: list[str] = []
        self._waiting: dict[str, _Waiting] = {}
        self._inbox = f"_INBOX.{NUID().next().decode()}"
        self._next_token = 1
        self._hears_replies = False
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
    def max_body_bytes(self) -> int:
        """The broker's `max_payload`, which counts the headers too."""
        return self._connection.max_payload if self._connection else DEFAULT_MAX_PAYLOAD_SIZE

    def inbox(self) -> str:
        """A new subject for replies."""
        self._next_token += 1
        return f"{self._inbox}.i{self._next_token}"

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
            await self._connection.send(line)
            await self._roundtrip(self._connection)
        return _Subscription(self, sid)

    async def _forget(self, sid: int) -> None:
        known = self._routes.pop(sid, None)
        if known is not None and self._connection is not None and self._up.is_set():
            await self._connection.send(protocol.unsubscribe(sid))

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
        await connection.send(message)
        if connection.pending_data_size > MAX_UNSENT_BYTES:
            await self._roundtrip(connection)

    async def request(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        """The chunks of a streamed reply."""
        if not self._hears_replies:
            self._hears_replies = True
            await self.listen(self._inbox + ".*", "", self._reply_came)
        reply = self.inbox()
        waiting = self._waiting[reply] = _Waiting()
        try:
            await self.publish(subject, body, headers, reply=reply)
            while True:
                async with asyncio.timeout(timeout_s):
                    incoming = await waiting.chunks.get()
                if incoming is None:
                    raise BusUnavailable(f"{subject}: {waiting.broken}")
                if incoming.is_no_responders:
                    raise NoResponders(f"nobody listens on {subject}")
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
            connection = self._last = _Connection(self._deliver)
            try:
                await self._connect(connection)
            except Exception as failure:
                unexpected = not isinstance(failure, (OSError, nats.errors.Error, TimeoutError, ValueError))
                if unexpected or repr(failure) != told:
                    log.warning("cannot connect to NATS: %r; trying again", failure, exc_info=unexpected)
                told = repr(failure)
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

    async def _connect(self, connection: _Connection) -> None:
        endpoint = self._endpoint()
        servers = [url.strip() for url in endpoint.url.split(",")]
        await connection.open(list(dict.fromkeys([*servers, *self._discovered])), endpoint, self._name)
        try:
            self._discovered = [url.geturl() for url in connection.discovered_servers]
            lines = [protocol.subscribe(route.subject, route.queue, sid) for sid, route in self._routes.items()]
            self._connection = connection
            self._up.set()
            await connection.send(b"".join(lines))
            await connection.roundtrip()
        except BaseException:
            self._disconnected()
            await connection.end()
            raise
        self._since_us = None
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

    async def _roundtrip(self, connection: _Connection) -> None:
        """Wait until the broker has all that was sent before; give the connection up where it does not answer."""
        try:
            await connection.roundtrip()
        except (nats.errors.Error, OSError) as failure:
            log.warning("NATS does not answer (%r); connecting anew", failure)
            await connection.close()

    def _unavailable(self) -> BusUnavailable:
        since = f" since {to_rfc3339(self._since_us)}" if self._since_us is not None else ""
        return BusUnavailable(f"no connection to NATS{since}; trying again all the time")


def _payload_bytes(body: bytes, headers: Mapping[str, str] | None) -> int:
    return len(body) + (len(protocol.encode_headers(headers)) if headers else 0)
