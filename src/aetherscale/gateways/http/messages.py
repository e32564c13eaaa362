"""A request and a response, as everything behind the connection sees them. Knows no socket and no route."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

JSON: Final = "application/json"
PLAIN: Final = "text/plain; charset=utf-8"
JSON_LINES: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"

Headers = tuple[tuple[str, str], ...]


class Caller(Struct, frozen=True):
    """Who asks."""

    actor: str
    """As in events: `unix:joe`, or `token:node` for whoever has the node's token."""


class Request(Struct, frozen=True):
    """The head of a request that may be asked, and its body once it has been read."""

    method: str
    target: str
    """As it came: the path with its query."""
    headers: Mapping[str, str]
    """By their names in lower case."""
    caller: Caller
    body: bytes = b""


class Response(Struct, frozen=True):
    """A whole response."""

    status: int
    body: bytes = b""
    headers: Headers = ()
    media_type: str = JSON


class Stream(Struct, frozen=True):
    """A response that comes bit by bit. `parts` are closed when the caller has gone."""

    parts: AsyncIterator[bytes]
    media_type: str
    headers: Headers = ()
    status: int = 200


def json_response(value: Any, status: int = 200, headers: Headers = ()) -> Response:
    """A response that is one JSON value."""
    return Response(status, msgspec.json.encode(value), headers)
