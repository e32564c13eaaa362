"""The plainest client of a NATS server that there can be: blocking, and blind to all but what is measured."""

from __future__ import annotations

import itertools
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from aetherscale.bus.endpoint import Endpoint

READ_BYTES: Final = 1024 * 1024
LIMIT_S: Final = 60.0
PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"
END_BYTES: Final = 4096
"""Where an error is looked for in a long reply: it comes last."""

_numbers = itertools.count(1)


class Wire:
    """A client that looks at nothing but the ends of messages, so that it is the node that is measured."""

    def __init__(self, endpoint: Endpoint) -> None:
        host, _, port = endpoint.url.rpartition("//")[2].rpartition(":")
        self._socket = socket.create_connection((host, int(port)), LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._inbox = f"_INBOX.bench{next(_numbers)}"
        self._numbers = itertools.count(1)
        self._receive_until(b"\r\n")
        options = {"verbose": False, "headers": True, "no_responders": True, "lang": "bench", "version": "1"}
        if endpoint.user:
            options |= {"user": endpoint.user, "pass": endpoint.password}
        connect = b"CONNECT " + msgspec.json.encode(options) + b"\r\n"
        self._socket.sendall(connect + f"SUB {self._inbox}.* 1\r\nPING\r\n".encode())
        self._receive_until(b"PONG\r\n")

    def ask(self, subject: str, body: bytes) -> bytes:
        """Everything that comes in reply, up to the empty message that ends it. Raises RuntimeError with an error."""
        inbox = f"{self._inbox}.{next(self._numbers)}"
        self._socket.sendall(publication(subject, inbox, body))
        said = self._receive_until(f"MSG {inbox} 1 0\r\n\r\n".encode())
        if pings := said.count(PING):
            self._socket.sendall(PONG * pings)
        refuse_error(said[-END_BYTES:])
        return said

    def ask_many(self, subject: str, bodies: Sequence[bytes], in_flight: int) -> tuple[list[float], float]:
        """Ask so many at a time, the next when one has its first reply.

        The milliseconds to each first reply, and the seconds until all have one. All replies have ended then.
        """
        waiting = deque(bodies)
        sent: dict[str, float] = {}
        took: list[float] = []
        ends = 0
        said = Messages()
        begun = last = time.perf_counter()
        while ends < len(bodies):
            out = b""
            while waiting and len(sent) < in_flight:
                inbox = f"{self._inbox}.{next(self._numbers)}"
                out += publication(subject, inbox, waiting.popleft())
                sent[inbox] = time.perf_counter()
            if out:
                self._socket.sendall(out)
            for inbox, payload in said.take(self._receive()):
                if inbox in sent:
                    last = time.perf_counter()
                    took.append((last - sent.pop(inbox)) * 1000)
                refuse_error(payload)
                ends += not payload
            if said.pings:
                self._socket.sendall(PONG * said.pings)
                said.pings = 0
        return took, last - begun

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _receive_until(self, end: bytes) -> bytes:
        parts: list[bytes] = []
        tail = b""
        while end not in tail:  # which a PING may follow
            data = self._receive()
            parts.append(data)
            tail = tail[-len(end) :] + data
        return b"".join(parts)

    def _receive(self) -> bytes:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the server hung up")
        return data


class Messages:
    """What a server says, cut into messages: `MSG subject sid size`, or `HMSG subject sid header-size size`."""

    def __init__(self) -> None:
        self._rest = b""
        self.pings = 0

    def take(self, data: bytes) -> list[tuple[str, bytes]]:
        """The messages that are whole now: subject, and payload with its headers."""
        self._rest += data
        at = 0
        found = []
        while (end := self._rest.find(b"\r\n", at)) >= 0:
            words = self._rest[at:end].split()
            if words[0] not in (b"MSG", b"HMSG"):
                self.pings += words[0] == b"PING"
                at = end + 2
                continue
            begin, size = end + 2, int(words[-1])
            if len(self._rest) < begin + size + 2:
                break
            found.append((words[1].decode(), self._rest[begin : begin + size]))
            at = begin + size + 2
        self._rest = self._rest[at:]
        return found


def refuse_error(said: bytes) -> None:
    """What is quick because it failed is not to be measured."""
    if b'"type":"error"' in said:
        raise RuntimeError(said.decode(errors="replace"))


def publication(subject: str, inbox: str, body: bytes) -> bytes:
    """A message that wants replies."""
    return f"PUB {subject} {inbox} {len(body)}\r\n".encode() + body + b"\r\n"
