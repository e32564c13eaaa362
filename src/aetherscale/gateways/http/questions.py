"""What the node and its historian say to one another: frames of msgpack on a pair of sockets.

    node                          historian
    4 bytes: length │ Question ─▶
                               ◀─ 4 bytes: length │ Answer

One question at a time, and one answer to each. The answer's body is the JSON that goes on to the caller as it is: the
node neither reads nor copies it into objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

import msgspec
from msgspec import Struct

from aetherscale.kernel.errors import Reason, Refused, Task

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""A larger answer is refused: ask for less."""
_LENGTH_BYTES: Final = 4

T = TypeVar("T")


class Question(Struct, frozen=True):
    """What is asked: the name of a method of `Answers`, and its arguments."""

    name: str
    options: dict[str, Any]


class Refusal(Struct, frozen=True):
    """A `Refused` on its way."""

    reason: Reason
    message: str
    field: str
    retryable: bool
    remedy: list[str | Task]
    details: dict[str, Any]


class Answer(Struct, frozen=True):
    """The answer: JSON, with what the node has to know of it; or why there is none."""

    body: bytes = b""
    position: int = 0
    """The moment that it is about, or the last event that it is about."""
    is_fixed: bool = False
    """Whether the words of a moment mean the same for ever."""
    changes: tuple[tuple[int, str, bytes], ...] = ()
    """Of `changes` for a stream: position, type and JSON of each."""
    refusal: Refusal | None = None


class Asked(Protocol):
    """Whoever answers questions about the past."""

    async def ask(self, name: str, **options: Any) -> Answer:
        """The answer to a question. Raises `Refused`."""
        ...

    async def close(self) -> None:
        """Answer no more; idempotent."""
        ...


def refusal_of(refused: Refused) -> Answer:
    """The answer that is a refusal."""
    remedy, details = list(refused.remedy), dict(refused.details)
    return Answer(refusal=Refusal(refused.reason, refused.message, refused.field, refused.retryable, remedy, details))


def unless_refused(answer: Answer) -> Answer:
    """The answer. Raises `Refused` where it is a refusal."""
    refusal = answer.refusal
    if refusal is None:
        return answer
    raise Refused(
        refusal.reason,
        refusal.message,
        remedy=tuple(refusal.remedy),
        field=refusal.field,
        retryable=refusal.retryable,
        details=refusal.details,
    )


async def read(reader: asyncio.StreamReader, of: type[T]) -> T:
    """The next frame. Raises `asyncio.IncompleteReadError` at the end, msgspec.MsgspecError, OSError."""
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    return msgspec.msgpack.decode(await reader.readexactly(length), type=of)


async def write(writer: asyncio.StreamWriter, value: Question | Answer) -> None:
    """Send a frame. Raises OSError."""
    data = msgspec.msgpack.encode(value)
    writer.writelines((len(data).to_bytes(_LENGTH_BYTES, "big"), data))
    await writer.drain()


def words(given: Mapping[str, Any]) -> dict[str, list[str]]:
    """Sets of words as they are sent."""
    return {name: sorted(value) for name, value in given.items() if value}
