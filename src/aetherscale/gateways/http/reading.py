"""Routes that change nothing: objects, lists page by page, and what is asked of the node or of a guest."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from aetherscale.bus import refusals
from aetherscale.gateways.http import queries
from aetherscale.gateways.http.calls import Calls, matches
from aetherscale.gateways.http.commands import require_json, with_reference
from aetherscale.gateways.http.dispatch import Found
from aetherscale.gateways.http.messages import JSON_LINES, Request, Response, Stream, json_response
from aetherscale.gateways.http.problems import HttpError
from aetherscale.kernel import wire
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.replies import Chunk

PAGE: Final = 1000
"""Objects on one page of a list, unless `limit` says otherwise."""
MAX_PAGE: Final = 10_000
"""The most that `limit` may say."""
PARAMETERS: Final = ("limit", "cursor")


class Reads:
    """The handlers of the routes that change nothing."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def all(self, found: Found, request: Request) -> Response:
        """`list-<plural>`: one page of it. A cursor names the last object of the page before, so none comes twice."""
        route = found.route
        assert route is not None
        assert route.options is not None
        given, rest = queries.split(found.query, PARAMETERS)
        limit = queries.whole(given, "limit", PAGE, 1, MAX_PAGE)
        after = _place(given["cursor"]) if "cursor" in given else ("", "")
        options = queries.options(rest, route.options, PARAMETERS)
        tag = f'"{self._calls.inside.epoch}-{self._calls.inside.head()}"'
        call = self._calls.query(request, route.component, route.task, options)
        views, count = [], 0
        async with self._calls.admitted(call) as chunks:
            if matches(request.headers.get("if-none-match", ""), tag):
                return Response(304, headers=(("etag", tag),))
            async for chunk in chunks:
                if chunk["type"] == "item":
                    views.append(chunk[route.kind])
                elif chunk["type"] == "result":
                    count = chunk["count"]
        page = [view for view in views if (view.name, view.id) > after]
        cursor = _cursor(page[limit - 1]) if len(page) > limit else None
        return json_response({"items": page[:limit], "count": count, "next": cursor}, headers=(("etag", tag),))

    async def one(self, found: Found, request: Request) -> Response:
        """`<kind>-info`: the view alone, by its revision."""
        route = found.route
        assert route is not None
        queries.require_none(found.query, ("at",))
        call = self._calls.query(request, route.component, route.task, {route.reference: found.value})
        view = (await self._last(call))[route.kind]
        tag = f'"{view.id}-{view.revision}"'
        if matches(request.headers.get("if-none-match", ""), tag):
            return Response(304, headers=(("etag", tag),))
        return json_response(view, headers=(("etag", tag),))

    async def ask(self, found: Found, request: Request) -> Response | Stream:
        """Any other query."""
        route = found.route
        assert route is not None
        assert route.options is not None
        if route.takes_body:
            require_json(request)
            queries.require_none(found.query)
            body = wire.decode(request.body, dict[str, msgspec.Raw], "body")
            options = with_reference(route.reference, found.value, body)
        else:
            given = queries.options(found.query, route.options, ())
            options = with_reference(route.reference, found.value, given)
        call = self._calls.query(request, route.component, route.task, options)
        if route.streams:
            return await self._stream(call)
        items: list[Any] = []
        async with self._calls.admitted(call) as chunks:
            async for chunk in chunks:
                if chunk["type"] == "item":
                    items.append(_without_type(chunk))
                elif chunk["type"] == "result":
                    told = _without_type(chunk)
                    return json_response({"items": items, **told} if items or "count" in told else told)
        raise AssertionError("the reply ended without a result or an error")

    async def _last(self, call: Any) -> Chunk:
        async with self._calls.admitted(call) as chunks:
            async for chunk in chunks:
                if chunk["type"] == "result":
                    return chunk
        raise AssertionError("the reply ended without a result or an error")

    async def _stream(self, call: Any) -> Stream:
        """Chunks as they are on NATS, one a line. What is refused at once is a problem, later it is the last line."""
        stack = AsyncExitStack()
        chunks = await stack.enter_async_context(self._calls.admitted(call))
        try:
            first = await anext(aiter(chunks))
        except BaseException:
            await stack.aclose()
            raise
        return Stream(_lines(first, chunks, stack), JSON_LINES)


async def _lines(first: Chunk, chunks: AsyncIterator[Chunk], stack: AsyncExitStack) -> AsyncIterator[bytes]:
    async with stack:
        yield _line(first)
        try:
            async for chunk in chunks:
                yield _line(chunk)
        except Refused as refused:
            yield _line(refusals.error(refused))


def _line(chunk: Chunk) -> bytes:
    return wire.encode(chunk) + b"\n"


def _without_type(chunk: Chunk) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name != "type"}


def _cursor(view: Any) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((view.name, view.id))).decode().rstrip("=")


def _place(cursor: str) -> tuple[str, str]:
    """The name and the id of the last object of a page. Raises `HttpError` (400)."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return msgspec.json.decode(base64.b64decode(padded, b"-_", validate=True), type=tuple[str, str])
    except (ValueError, binascii.Error):
        raise HttpError(
            "bad-request",
            f"query: cursor: got {cursor[:80]!r}, which is no `next` of a list",
            field="cursor",
            hint="begin without a cursor",
        ) from None
