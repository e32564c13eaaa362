"""The answers of JetStream, read as strictly as messages of strangers: a client that sees a question can forge its
answer. Pure.

Numbers are numbers within their range, texts lose their control characters, and what is no answer is refused as such.
Fields that are not looked at may be whatever a server of another version makes them. Source: ADR-1 of the NATS
architecture.
"""

from __future__ import annotations

import re
from base64 import b64decode
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from aetherscale.bus import beats
from aetherscale.bus.bus import Incoming
from aetherscale.bus.protocol import parse_headers

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""More than a server's largest answer: a message of the stream in base64."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]

A = TypeVar("A", bound="Answer")

_NUMBER = re.compile(r"[1-9][0-9]{0,18}")


class MalformedAnswer(Exception):
    """The message is not an answer to the question; says what is wrong."""


class ApiError(Struct, frozen=True):
    """Why it refused."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(Struct, frozen=True):
    """The error that every answer may be instead."""

    error: ApiError | None = None


class State(Struct, frozen=True):
    """The contents of a stream."""

    first_seq: Count
    last_seq: Count
    messages: Count
    bytes: Count
    num_deleted: Count = 0


class Info(Answer, frozen=True):
    """A stream. `config` is as the server has it."""

    config: dict[str, Any] = {}
    state: State | None = None
    created: str = ""


class Kept(Struct, frozen=True):
    """One message of a stream; of its headers a block in base64."""

    hdrs: str = ""


class Got(Answer, frozen=True):
    """A message by its position."""

    message: Kept | None = None


class Ack(Answer, frozen=True):
    """A message was stored, or not."""

    stream: str = ""
    seq: Count = 0
    duplicate: bool = False


def read(body: bytes, kind: type[A]) -> A:
    """The typed answer in a body. Raises `MalformedAnswer`."""
    if len(body) > MAX_ANSWER_BYTES:
        raise MalformedAnswer(f"got {len(body)} bytes, expected at most {MAX_ANSWER_BYTES}")
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as broken:
        raise MalformedAnswer(beats.line(str(broken))) from None


def refusal(error: ApiError) -> str:
    """Why it refused, in one line."""
    return beats.line(error.description) or f"error {error.err_code}"


def ack_failure(incoming: Incoming, stream: str, seq: int) -> str:
    """Why a message is not stored where it must be; "" where it is. One that was there before is there."""
    if incoming.is_no_responders:
        return "no stream takes it"
    try:
        ack = read(incoming.body, Ack)
    except MalformedAnswer as broken:
        return f"not an acknowledgement: {broken}"
    if ack.error is not None:
        return refusal(ack.error)
    if ack.stream != stream:
        return f"it was stored in {beats.line(ack.stream)!r}"
    return "" if ack.seq == seq else f"it was stored at {ack.seq}"


def position(incoming: Incoming) -> int:
    """The position of a message that was read directly; 0 where this is none."""
    text = incoming.headers.get("Nats-Sequence", "")
    return int(text) if _NUMBER.fullmatch(text) else 0


def header(message: Kept, name: str) -> str:
    """A header of a message; "" where it has none. Raises `MalformedAnswer`."""
    try:
        return parse_headers(b64decode(message.hdrs, validate=True)).get(name, "") if message.hdrs else ""
    except ValueError:
        raise MalformedAnswer("its headers are not base64") from None
