"""A NATS connection without asyncio, for programs that ask one question and end: half their start is saved.

One thread uses it, and nothing is read but while it waits. It does not reconnect: the caller knows best whether to ask
again.

    with connect(endpoint) as connection:
        for chunk in connection.request("aether.v1.default.cmd.compute.list-vms", b"{}", timeout_s=10):
            …
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aetherscale.bus import credentials, protocol
from aetherscale.bus.bus import BusUnavailable, Incoming, NoResponders, NotAuthorized, TooLarge
from aetherscale.bus.endpoint import servers
from aetherscale.bus.protocol import Control, Delivery, Parser, ProtocolError

if TYPE_CHECKING:
    from aetherscale.bus.endpoint import Endpoint, Server

CONNECT_S: Final = 3.0
READ_BYTES: Final = 256 * 1024
MAX_PAYLOAD_BYTES: Final = 1024 * 1024
MAX_WAITING: Final = 100_000
"""Messages that wait in memory for a subscription that is not read."""


def connect(endpoint: Endpoint, *, name: str = "aetherscale", timeout_s: float = CONNECT_S) -> Connection:
    """A connection to the first server of the endpoint that answers.

    Raises `BusUnavailable` that names each, `NotAuthorized` where one refused the credentials, and ValueError.
    """
    failures: list[str] = []
    kind: type[BusUnavailable] = BusUnavailable
    for server in servers(endpoint):
        try:
            return Connection(server, endpoint, name, timeout_s)
        except BusUnavailable as failure:
            kind = NotAuthorized if isinstance(failure, NotAuthorized) else kind
            failures.append(str(failure))
    raise kind("; ".join(failures))


class Connection:
    """A connection that stands, from the moment it is made until `close`, or until it is lost.

    Every method raises `BusUnavailable` where it is lost.
    """

    def __init__(self, server: Server, endpoint: Endpoint, name: str, timeout_s: float) -> None:
        self.url = server.url
        self.max_payload_bytes = MAX_PAYLOAD_BYTES
        self._parser = Parser()
        self._subscriptions: dict[int, Subscription] = {}
        self._last_sid = 0
        self._awaited = ""
        self._heard: Control | None = None
        host = server.host
        try:
            # As bytes: a text would go through the tables of international names, which take time to load. typeshed
            # does not know that getaddrinfo(3) is given them as they are.
            raw_host = host.encode("ascii" if host.isascii() else "idna")
            self._socket = socket.create_connection((raw_host, server.port), timeout_s)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "this is no name of a host"
            raise self._lost(f"cannot be reached: {reason or error}") from error
        try:
            self._greet(server.scheme, host, endpoint, name, timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For `select`: readable where there is more than `receive(0)` of the subscriptions has said."""
        return self._socket.fileno()

    def publish(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """Send one message; `flush` says when the server has it.

        Raises `TooLarge`, and ValueError for a malformed subject or header.
        """
        header_bytes = len(protocol.encode_headers(headers)) if headers else 0
        if len(body) + header_bytes > self.max_payload_bytes:
            raise TooLarge(f"{subject}: got {len(body)} bytes, expected at most {self.max_payload_bytes}")
        self._send(protocol.publish(subject, body, headers, reply))

    def subscribe(self, subject: str) -> Subscription:
        """Hear every message on a subject. Raises ValueError for a malformed one."""
        self._last_sid += 1
        self._send(protocol.subscribe(subject, "", self._last_sid))
        subscription = Subscription(self, self._last_sid)
        self._subscriptions[self._last_sid] = subscription
        return subscription

    def flush(self, timeout_s: float = CONNECT_S) -> None:
        """Return when the server has taken everything that was sent."""
        self._send(protocol.PING)
        self._await("PONG", timeout_s)

    def request(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed reply, each a JSON object, without the empty message that ends it.

        `timeout_s` bounds the silence before each. Raises `NoResponders`, `TimeoutError`.
        """
        reply = self.ask(subject, body, headers)
        try:
            while True:
                incoming = reply.receive(timeout_s)
                if incoming is None:
                    raise TimeoutError(f"no word on {subject} within {timeout_s:g} s")
                if incoming.is_no_responders:
                    raise NoResponders(f"no subscriber listens on {subject}")
                if incoming.ends_stream:
                    return
                yield self.chunk(incoming)
        finally:
            reply.unsubscribe()

    def ask(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> Subscription:
        """Send a request; its reply is heard on the returned subscription, also that there is no listener."""
        inbox = f"_INBOX.{os.urandom(16).hex()}"
        reply = self.subscribe(inbox)
        self.publish(subject, body, headers, inbox)
        return reply

    def chunk(self, incoming: Incoming) -> dict[str, Any]:
        """The JSON object in a message. Raises `BusUnavailable` for anything else: that is no node of ours."""
        try:
            return msgspec.json.decode(incoming.body, type=dict[str, Any])
        except msgspec.MsgspecError as broken:
            raise self._lost(f"the answer is not a JSON object: {broken}") from broken

    def close(self) -> None:
        """Hang up; idempotent."""
        self._socket.close()

    def read(self, timeout_s: float | None) -> bool:
        """Take in what has arrived and hand it to its subscriptions; False where nothing does in time."""
        try:
            self._socket.settimeout(None if timeout_s is None else max(timeout_s, 0.0))
            data = self._socket.recv(READ_BYTES)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            raise self._lost(f"the connection was lost: {error.strerror or error}") from error
        if not data:
            raise self._lost("the connection was lost: the server hung up")
        try:
            for frame in self._parser.feed(data):
                if isinstance(frame, Control):
                    self._heed(frame)
                else:
                    self._deliver(frame)
        except ProtocolError as broken:
            raise self._lost(str(broken)) from broken
        return True

    def forget(self, sid: int) -> None:
        """Hear no more of a subscription."""
        if self._subscriptions.pop(sid, None) is not None and self._socket.fileno() >= 0:
            self._send(protocol.unsubscribe(sid))

    def _deliver(self, delivery: Delivery) -> None:
        subscription = self._subscriptions.get(delivery.sid)
        if subscription is None:
            return
        if len(subscription.waiting) >= MAX_WAITING:
            raise self._lost(f"more than {MAX_WAITING} messages were waiting unread")
        subscription.waiting.append(delivery.incoming)

    def _heed(self, control: Control) -> None:
        if control.verb == self._awaited:
            self._heard, self._awaited = control, ""
        elif control.verb == "PING":
            self._send(protocol.PONG)
        elif control.verb == "-ERR":
            lost = self._lost(protocol.meaning(control.argument))
            raise NotAuthorized(str(lost)) if protocol.is_about_credentials(control.argument) else lost

    def _await(self, verb: str, timeout_s: float) -> Control:
        """The next control line of a kind. What is sent before a PING has been taken when its PONG comes."""
        self._awaited, self._heard = verb, None
        until_s = time.monotonic() + timeout_s
        while (heard := self._heard_now()) is None:
            if not self.read(until_s - time.monotonic()):
                raise self._lost(f"no {verb} from the server within {timeout_s:g} s")
        return heard

    def _heard_now(self) -> Control | None:
        return self._heard

    def _greet(self, scheme: str, host: str, endpoint: Endpoint, name: str, timeout_s: float) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            info = self._await("INFO", timeout_s).info()
        except ProtocolError as broken:
            raise self._lost(str(broken)) from broken
        limit = info.get("max_payload", MAX_PAYLOAD_BYTES)
        self.max_payload_bytes = limit if isinstance(limit, int) else MAX_PAYLOAD_BYTES
        if scheme == "tls" or info.get("tls_required"):
            self._secure(host)
        options: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "name": name,
        }
        if endpoint.creds or endpoint.nkey:
            nonce = info.get("nonce")
            options |= credentials.answer(endpoint.creds, endpoint.nkey, nonce if isinstance(nonce, str) else "")
        if endpoint.user:
            options |= {"user": endpoint.user, "pass": endpoint.password}
        if endpoint.token:
            options |= {"auth_token": endpoint.token}
        self._send(protocol.connect(options))
        self.flush(timeout_s)

    def _secure(self, host: str) -> None:
        import ssl

        try:
            self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=host)
        except OSError as error:
            raise self._lost(f"no TLS: {error}") from error

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(CONNECT_S)
            self._socket.sendall(data)
        except OSError as error:
            # A server that hangs up says why before it does; its words may have come and not been read yet.
            while self.read(0):
                pass
            raise self._lost(f"the connection was lost: {error.strerror or error}") from error

    def _lost(self, what: str) -> BusUnavailable:
        return BusUnavailable(f"{self.url}: {what}")


class Subscription:
    """The messages of one subscription, in order. `waiting` are those that have arrived."""

    def __init__(self, connection: Connection, sid: int) -> None:
        self.waiting: deque[Incoming] = deque()
        self._connection = connection
        self._sid = sid

    def __iter__(self) -> Iterator[Incoming]:
        while True:
            incoming = self.receive(None)
            assert incoming is not None, "without a time limit there is a message"
            yield incoming

    def receive(self, timeout_s: float | None) -> Incoming | None:
        """The next message; None where none comes in time. What comes for others waits for its turn."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.waiting:
            if not self._connection.read(None if until_s is None else until_s - time.monotonic()):
                return None
        return self.waiting.popleft()

    def unsubscribe(self) -> None:
        """Hear no more of it; idempotent."""
        self._connection.forget(self._sid)
