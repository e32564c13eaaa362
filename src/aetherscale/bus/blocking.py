"""A NATS connection without asyncio, for programs that ask one question and end: half the start is saved.

One thread uses it, and nothing is read but while it waits in `receive`. It does not reconnect: whoever asks knows best
whether to ask again.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from aetherscale.bus import protocol
from aetherscale.bus.bus import BusUnavailable, Incoming, NoResponders
from aetherscale.bus.endpoint import Endpoint
from aetherscale.bus.protocol import Control, Delivery, Parser, ProtocolError

CONNECT_S: Final = 3.0
CHUNK_BYTES: Final = 256 * 1024


class Connection:
    """A connection that stands, from the moment it is made until `close`, or until it is lost."""

    def __init__(self, endpoint: Endpoint, *, name: str = "aetherscale", timeout_s: float = CONNECT_S) -> None:
        """Connect to the first server of the endpoint that answers. Raises `BusUnavailable`."""
        self._waiting: deque[Delivery] = deque()
        self._parser = Parser()
        self._last_sid = 0
        self._awaited = ""
        self._heard: Control | None = None
        failures: list[str] = []
        for url in endpoint.url.split(","):
            try:
                self._socket = self._connect(url, endpoint, name, timeout_s)
                self.url = url
                return
            except (OSError, ProtocolError, BusUnavailable) as failure:
                failures.append(f"{url}: {failure}")
        raise BusUnavailable("; ".join(failures))

    def fileno(self) -> int:
        """For `select`: readable where there is more to receive than `receive(0)` has said."""
        return self._socket.fileno()

    def publish(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, reply: str = "") -> None:
        """Send one message. Raises `BusUnavailable`, ValueError for a malformed subject or header."""
        self._send(protocol.publish(subject, body, headers, reply))

    def subscribe(self, subject: str) -> int:
        """Hear every message on a subject from now on; answers with the number that its deliveries have.

        On return the server knows of it. Raises `BusUnavailable`, ValueError for a malformed subject.
        """
        self._last_sid += 1
        self._send(protocol.subscribe(subject, "", self._last_sid) + protocol.PING)
        self._await("PONG", CONNECT_S)
        return self._last_sid

    def unsubscribe(self, sid: int) -> None:
        """Hear no more of a subscription; what has arrived of it is dropped. Raises `BusUnavailable`."""
        self._send(protocol.unsubscribe(sid))
        self._waiting = deque(delivery for delivery in self._waiting if delivery.sid != sid)

    def receive(self, timeout_s: float | None, sid: int | None = None) -> Delivery | None:
        """The next message, of one subscription or of any; None where none comes in time.

        What comes for other subscriptions waits for its turn. Raises `BusUnavailable`.
        """
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            for at, delivery in enumerate(self._waiting):
                if sid is None or delivery.sid == sid:
                    del self._waiting[at]
                    return delivery
            if not self._read(None if until_s is None else until_s - time.monotonic()):
                return None

    def ask(self, subject: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request; its streamed reply is read from what this returns. Raises `BusUnavailable`."""
        inbox = f"_INBOX.{os.urandom(16).hex()}"
        self._last_sid += 1
        self._send(protocol.subscribe(inbox, "", self._last_sid) + protocol.publish(subject, body, headers, inbox))
        return Reply(self, self._last_sid, subject)

    def close(self) -> None:
        """Hang up; idempotent."""
        self._socket.close()

    def _connect(self, url: str, endpoint: Endpoint, name: str, timeout_s: float) -> socket.socket:
        scheme, _, address = url.partition("://")
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            info = self._await("INFO", timeout_s).info()
            if scheme == "tls" or info.get("tls_required"):
                self._socket = _secured(self._socket, host.strip("[]"))
            options: dict[str, Any] = {
                "verbose": False,
                "pedantic": False,
                "lang": "python-blocking",
                "version": "1",
                "protocol": 1,
                "headers": True,
                "no_responders": True,
                "name": name,
            }
            if endpoint.user:
                options |= {"user": endpoint.user, "pass": endpoint.password}
            self._send(protocol.connect(options) + protocol.PING)
            self._await("PONG", timeout_s)
        except BaseException:
            self._socket.close()
            raise
        return self._socket

    def _await(self, verb: str, timeout_s: float) -> Control:
        """The next control line of a kind. What is sent before a PING has been taken when its PONG comes."""
        self._awaited, self._heard = verb, None
        until_s = time.monotonic() + timeout_s
        while self._heard is None:
            if not self._read(until_s - time.monotonic()):
                raise BusUnavailable(f"no {verb} from the server within {timeout_s:g} s")
        return self._heard

    def _heed(self, control: Control) -> None:
        if control.verb == self._awaited:
            self._heard, self._awaited = control, ""
        elif control.verb == "PING":
            self._send(protocol.PONG)
        elif control.verb == "-ERR":
            raise BusUnavailable(f"the server says: {control.argument}")

    def _read(self, timeout_s: float | None) -> bool:
        """Take in what has arrived; False where nothing does in time."""
        try:
            self._socket.settimeout(None if timeout_s is None else max(timeout_s, 0.0))
            data = self._socket.recv(CHUNK_BYTES)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            raise BusUnavailable(f"the connection was lost: {error.strerror or error}") from error
        if not data:
            raise BusUnavailable("the connection was lost: the server hung up")
        try:
            for frame in self._parser.feed(data):
                if isinstance(frame, Delivery):
                    self._waiting.append(frame)
                else:
                    self._heed(frame)
        except ProtocolError as broken:
            raise BusUnavailable(str(broken)) from broken
        return True

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(CONNECT_S)
            self._socket.sendall(data)
        except OSError as error:
            raise BusUnavailable(f"the connection was lost: {error.strerror or error}") from error


class Reply:
    """The messages of one streamed reply."""

    def __init__(self, connection: Connection, sid: int, subject: str) -> None:
        self._connection = connection
        self._sid = sid
        self._subject = subject

    def next(self, timeout_s: float | None) -> Incoming | None:
        """The next message; None at the end of the stream.

        Raises `TimeoutError` where none comes in time, `NoResponders` and `BusUnavailable`.
        """
        delivery = self._connection.receive(timeout_s, self._sid)
        if delivery is None:
            raise TimeoutError(f"no word on {self._subject} within {timeout_s:g} s")
        if delivery.incoming.is_no_responders:
            raise NoResponders(f"nobody listens on {self._subject}")
        return None if delivery.incoming.ends_stream else delivery.incoming

    def close(self) -> None:
        """Hear no more of it; what was asked for is done all the same."""
        with suppress(BusUnavailable):
            self._connection.unsubscribe(self._sid)


def _secured(plain: socket.socket, host: str) -> socket.socket:
    import ssl

    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
