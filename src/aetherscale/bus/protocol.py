"""The NATS client protocol, without I/O: bytes in, frames out, and the other way round.

Shared by the node's connection (`nats.py`) and the command line's (`blocking.py`). It holds against what strangers can
make a server deliver: subjects and headers that are not UTF-8, that contain control characters, or that are no headers
at all. Source: the "Client Protocol" page of the NATS documentation, and ADR-4 (headers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.bus.bus import STATUS, Incoming

MAX_LINE_BYTES: Final = 64 * 1024
"""No line of a server is as long, not even an INFO that lists a large cluster."""
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""A server's own hard limit for one message."""

PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"

DESCRIPTION: Final = "Description"
SERVERS_OWN: Final = frozenset({STATUS, DESCRIPTION})
"""Headers in which the server itself speaks."""

_HEADER_LINE: Final = b"NATS/1.0"
_HEADER_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_LINES = re.compile(r"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\x00-\x1f\x7f]*\r\n)*")
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_PART = r"[^\x00-\x20\x7f.]+"
_PATTERN = re.compile(rf"(?:(?!>\.){_PART}\.)*{_PART}")
_PLAIN = r"(?![*>](?:\.|\Z))[^\x00-\x20\x7f.]+"
_PLAIN_SUBJECT = re.compile(rf"{_PLAIN}(?:\.{_PLAIN})*")


class ProtocolError(Exception):
    """The other side does not speak NATS, or no longer does; the connection is of no use."""


REFUSED: Final[Mapping[str, str]] = {
    "authorization violation": "the server refuses the credentials (Authorization Violation)",
    "user authentication expired": "the server says that the credentials have expired",
    "user authentication revoked": "the server says that the credentials were revoked",
    "account authentication expired": "the server says that the account has expired",
    "authentication timeout": "the server got no credentials in time (Authentication Timeout)",
    "maximum connections exceeded": "the server takes no more connections (max_connections)",
    "maximum account active connections exceeded": "the account has no more connections left",
    "maximum control line exceeded": "the server's max_control_line is too small; the default, 4096, is enough",
    "maximum payload violation": "the server's max_payload is too small; the default, 1 MiB, is enough",
    "maximum subscriptions exceeded": "the account or the user has no more subscriptions left",
    "secure connection - tls required": "the server wants TLS: write tls:// for nats://",
}
"""The `-ERR` texts of a server, in lower case, with their meanings."""
CREDENTIALS: Final = ("auth", "user auth", "account auth")
"""How those begin that are about who we are."""


def meaning(said: str) -> str:
    """The meaning of an `-ERR` of a server, in one line."""
    words = said.strip("' ").lower()
    for known, what in REFUSED.items():
        if words.startswith(known):
            return what
    return f"the server says: {''.join(character if character.isprintable() else ' ' for character in said[:300])}"


def is_about_credentials(said: str) -> bool:
    """Whether an `-ERR` says that our credentials are not taken."""
    return said.strip("' ").lower().startswith(CREDENTIALS)


class Delivery(Struct, frozen=True):
    """A message for the subscription `sid`."""

    sid: int
    incoming: Incoming


class Control(Struct, frozen=True):
    """Everything else that a server says: `INFO`, `PING`, `PONG`, `+OK`, `-ERR`, with the rest of the line."""

    verb: str
    argument: str

    def info(self) -> dict[str, Any]:
        """The object of an `INFO` line. Raises `ProtocolError`."""
        try:
            found: dict[str, Any] = msgspec.json.decode(self.argument, type=dict[str, Any])
        except msgspec.DecodeError as broken:
            raise ProtocolError(f"INFO of the server is not a JSON object: {broken}") from None
        return found


class _Head(Struct, frozen=True):
    """The line before a message, decoded."""

    sid: int
    subject: str
    reply: str
    header_bytes: int
    total_bytes: int


class Parser:
    """Turns what a server sends, in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._buffer = b""
        self._head: _Head | None = None

    def feed(self, data: bytes) -> list[Delivery | Control]:
        """The frames that `data` completes. Raises `ProtocolError`; the parser is then of no more use."""
        buffer = self._buffer + data if self._buffer else data
        frames: list[Delivery | Control] = []
        head, at = self._head, 0
        while True:
            if head is None:
                end = buffer.find(b"\r\n", at)
                if end < 0:
                    if len(buffer) - at > MAX_LINE_BYTES:
                        raise ProtocolError(f"a line of the server has more than {MAX_LINE_BYTES} bytes")
                    break
                line, at = buffer[at:end], end + 2
                if line[:4].upper() not in (b"MSG ", b"HMSG"):
                    frames.append(_control(line))
                    continue
                head = _head(line)
            end = at + head.total_bytes
            if len(buffer) < end + 2:
                break
            if buffer[end : end + 2] != b"\r\n":
                raise ProtocolError(f"a message is longer than the {head.total_bytes} bytes that were announced")
            body_at = at + head.header_bytes
            headers = parse_headers(buffer[at:body_at]) if head.header_bytes else _NO_HEADERS
            frames.append(Delivery(head.sid, Incoming(head.subject, buffer[body_at:end], headers, head.reply)))
            head, at = None, end + 2
        self._buffer, self._head = buffer[at:], head
        return frames


def _control(line: bytes) -> Control:
    verb, _, argument = line.decode("utf-8", "replace").partition(" ")
    verb = verb.strip().upper()
    if verb not in ("INFO", "PING", "PONG", "+OK", "-ERR"):
        raise ProtocolError(f"got the line {line[:80]!r}, expected NATS")
    return Control(verb, argument.strip())


@lru_cache(maxsize=64)
def _head(line: bytes) -> _Head:
    """`MSG subject sid [reply] size` or `HMSG subject sid [reply] header-size size`; those of one reply are few."""
    words = line.split(b" ")
    if b"" in words:
        words = [word for word in words if word]
    sizes = 2 if len(words[0]) == 4 else 1
    try:
        sid, total_bytes = int(words[2]), int(words[-1])
        header_bytes = int(words[-2]) if sizes == 2 else 0
    except (ValueError, IndexError):
        raise ProtocolError(f"got the line {line[:80]!r}, expected a message") from None
    if len(words) - sizes not in (3, 4) or not 0 <= header_bytes <= total_bytes <= MAX_FRAME_BYTES:
        raise ProtocolError(f"got the line {line[:80]!r}, expected a message of at most {MAX_FRAME_BYTES} bytes")
    reply = words[3].decode("utf-8", "surrogateescape") if len(words) == 4 + sizes else ""
    return _Head(sid, words[1].decode("utf-8", "surrogateescape"), reply, header_bytes, total_bytes)


@lru_cache(maxsize=256)
def parse_headers(block: bytes) -> Mapping[str, str]:
    """A header block as a mapping; what is not a header in it is left out, and of a repeated one the last counts.

    A status line, in which the server speaks (`NATS/1.0 503`), becomes `Status` and `Description`; headers of these
    names are a stranger's, and left out.
    """
    first, *lines = block.split(b"\r\n")
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        key = name.strip().decode("utf-8", "replace")
        if colon and key not in SERVERS_OWN and _HEADER_KEY.fullmatch(key):
            found[key] = value.strip().decode("utf-8", "replace")
    status, _, description = first.removeprefix(_HEADER_LINE).strip().partition(b" ")
    if status.isdigit():
        found[STATUS] = status.decode()
        if description:
            found[DESCRIPTION] = description.strip().decode("utf-8", "replace")
    return MappingProxyType(found)


def connect(options: Mapping[str, Any]) -> bytes:
    """The `CONNECT` line."""
    return b"CONNECT " + msgspec.json.encode(options) + b"\r\n"


def subscribe(subject: str, queue: str, sid: int) -> bytes:
    """The `SUB` line. Raises ValueError for a malformed subject or queue."""
    check_pattern(subject)
    if queue:
        check_subject(queue)
    return f"SUB {subject} {queue} {sid}\r\n".encode() if queue else f"SUB {subject} {sid}\r\n".encode()


def unsubscribe(sid: int) -> bytes:
    """The `UNSUB` line."""
    return f"UNSUB {sid}\r\n".encode()


def publish(subject: str, body: bytes, headers: Mapping[str, str] | None = None, reply: str = "") -> bytes:
    """A whole `PUB` or `HPUB`. Raises ValueError for a malformed subject, reply or header."""
    address = _address(subject, reply)
    if not headers:
        return b"PUB %b%d\r\n%b\r\n" % (address, len(body), body)
    block = encode_headers(headers)
    return b"HPUB %b%d %d\r\n%b%b\r\n" % (address, len(block), len(block) + len(body), block, body)


@lru_cache(maxsize=256)
def _address(subject: str, reply: str) -> bytes:
    """Subject and reply as they stand before the sizes; the chunks of one answer all have the same."""
    check_subject(subject)
    if not reply:
        return f"{subject} ".encode("utf-8", "surrogateescape")
    check_subject(reply)
    return f"{subject} {reply} ".encode("utf-8", "surrogateescape")


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """A header block. Raises ValueError for a name that is no token or the server's own, or a control character."""
    return _encode_headers(tuple(headers.items()))


@lru_cache(maxsize=256)
def _encode_headers(items: tuple[tuple[str, str], ...]) -> bytes:
    if any(key in SERVERS_OWN for key, _ in items):
        raise ValueError("the headers Status and Description are the server's own")
    lines = "".join([f"{key}: {value}\r\n" for key, value in items])
    # A value with a line end in it would look like one header more.
    if not _HEADER_LINES.fullmatch(lines) or lines.count("\r\n") != len(items):
        raise ValueError(f"headers {lines[:200]!r} have characters that no header may have")
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def check_subject(subject: str) -> None:
    """Raise ValueError unless messages can be published on `subject`: no wildcard, blank or empty token."""
    if not _PLAIN_SUBJECT.fullmatch(subject):
        raise ValueError(f"subject {subject[:200]!r} cannot be published to")


def check_pattern(subject: str) -> None:
    """Raise ValueError unless `subject` can be subscribed: `*` for one token, `>` for all the rest."""
    if not _PATTERN.fullmatch(subject):
        raise ValueError(f"subject {subject[:200]!r} cannot be subscribed to")


def matches(pattern: str, subject: str) -> bool:
    """Whether a subscription to `pattern` hears what is published on `subject`."""
    wanted, got = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(got) <= len(wanted):
            return False
        got = got[: len(wanted)]
    return len(wanted) == len(got) and all(a in ("*", b) for a, b in zip(wanted, got, strict=True))
