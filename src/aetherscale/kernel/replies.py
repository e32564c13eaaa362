"""The chunks of a streamed reply: any number of `status` and `item`, then one `result` or `error`.

Chunks are plain JSON objects, since what they carry beside `type` belongs to the component that answers. On the wire
the stream ends with one empty message without headers; that is the bus's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Chunk = Mapping[str, Any]


class Kept(dict[str, Any]):
    """A chunk that is sent many times and never changed: its encoded bytes may be kept with it."""

    __slots__ = ("encoded",)
    encoded: bytes | None

    def __init__(self, chunk: Chunk) -> None:
        super().__init__(chunk)
        self.encoded = None


def status(word: str, **fields: Any) -> Chunk:
    """A step on the way: `{"type": "status", "status": word, …}`. Keyword names become kebab-case."""
    return {"type": "status", "status": word, **_kebab(fields)}


def item(fields: Mapping[str, Any]) -> Chunk:
    """One element of a list."""
    return {"type": "item", **fields}


def result(fields: Mapping[str, Any]) -> Chunk:
    """The good end of a stream."""
    return {"type": "result", **fields}


def is_final(chunk: Chunk) -> bool:
    """Whether nothing but the empty message follows."""
    return chunk["type"] in ("result", "error")


def _kebab(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in fields.items()}
