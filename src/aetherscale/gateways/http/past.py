"""Routes about the past: the state at a moment, what changed between two, one object, why, and how much happened when.

A moment is a position in the log or a time, read by the function that reads `--at` of the command line. The historian
answers; what it says of a moment that stays the same is immutable, and its ETag is the position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from aetherscale.components import identities
from aetherscale.gateways.http import queries, reading
from aetherscale.gateways.http.calls import matches
from aetherscale.gateways.http.changes import IMMUTABLE
from aetherscale.gateways.http.dispatch import Found
from aetherscale.gateways.http.messages import Headers, Request, Response
from aetherscale.gateways.http.port import Inside
from aetherscale.gateways.http.problems import HttpError
from aetherscale.gateways.http.questions import Asked

STATE: Final = ("at", "kind", "limit")
SPAN: Final = ("from", "to")
DENSITY: Final = (*SPAN, "columns")
OBJECT: Final = ("at",)
WHY: Final = ("at", "all")
COLUMNS: Final = 240
"""Of a density, unless `columns` says otherwise."""
MAX_COLUMNS: Final = 1000
"""The most that `columns` may say."""
_KINDS: Final = tuple(each.kind for each in identities())


class Moment(Struct, frozen=True):
    """A moment that somebody asked for."""

    position: int
    is_fixed: bool
    """Whether the words for it mean the same for ever."""


class Past:
    """The handlers of the routes about the past."""

    def __init__(self, inside: Inside, historian: Asked) -> None:
        self._inside, self._historian = inside, historian

    async def state(self, found: Found, request: Request) -> Response:
        """Everything, or the objects of some kinds, as it was."""
        given, rest = queries.split(found.query, STATE)
        queries.require_none(rest, STATE)
        kinds = given["kind"].split(",") if "kind" in given else []
        if unknown := sorted(set(kinds) - set(_KINDS)):
            what = f"query: there is no kind {unknown[0][:64]!r}"
            raise HttpError("bad-request", what, field="kind", hint=f"known: {', '.join(sorted(_KINDS))}")
        limit = queries.whole(given, "limit", 0, 1, reading.MAX_PAGE) or None
        at = await self._moment(given, "at")
        return await self._told(request, (at,), "state", position=at.position, kinds=kinds, limit=limit)

    async def diff(self, found: Found, request: Request) -> Response:
        """What changed between two moments."""
        given, rest = queries.split(found.query, SPAN)
        queries.require_none(rest, SPAN)
        begin, end = await self._span(given)
        return await self._told(request, (begin, end), "diff", before=begin.position, after=end.position)

    async def density(self, found: Found, request: Request) -> Response:
        """How much happened in each of some columns of a span; without its ends, of the whole log."""
        given, rest = queries.split(found.query, DENSITY)
        queries.require_none(rest, DENSITY)
        columns = queries.whole(given, "columns", COLUMNS, 1, MAX_COLUMNS)
        begin, end = await self._span({"from": "0", **given})
        return await self._told(
            request, (begin, end), "density", after=begin.position, until=end.position, columns=columns
        )

    async def one(self, found: Found, request: Request) -> Response:
        """One object, as it was."""
        route = found.route
        assert route is not None
        given, rest = queries.split(found.query, OBJECT)
        queries.require_none(rest, OBJECT)
        at = await self._moment(given, "at")
        about = {"kind": route.kind, "reference": found.value}
        return await self._told(request, (at,), "object", **about, position=at.position)

    async def why(self, found: Found, request: Request) -> Response:
        """Why an object is, or was, as it is."""
        route = found.route
        assert route is not None
        given, rest = queries.split(found.query, WHY)
        queries.require_none(rest, WHY)
        whole = queries.truth(given, "all")
        at = await self._moment(given, "at")
        about = {"kind": route.kind, "reference": found.value}
        return await self._told(request, (at,), "why", **about, position=at.position, whole=whole)

    async def _told(self, request: Request, moments: tuple[Moment, ...], question: str, **options: Any) -> Response:
        positions = "-".join(str(each.position) for each in moments)
        tag = f'"{self._inside.epoch}-{positions}"'
        is_fixed = all(each.is_fixed for each in moments)
        headers: Headers = (("etag", tag), *((IMMUTABLE,) if is_fixed else ()))
        if matches(request.headers.get("if-none-match", ""), tag):
            return Response(304, headers=headers)
        answer = await self._historian.ask(question, **options)
        return Response(200, answer.body, headers)

    async def _span(self, given: Mapping[str, str]) -> tuple[Moment, Moment]:
        """Two moments, the second of which is now where it is not given. Raises `HttpError` (400)."""
        if "from" not in given:
            what = "query: from is missing, expected the number of an event or a time"
            raise HttpError("bad-request", what, field="from")
        begin, end = await self._moment(given, "from"), await self._moment(given, "to")
        if begin.position > end.position:
            what = f"query: from is event {begin.position}, which comes after event {end.position}"
            raise HttpError("bad-request", what, field="from", hint="swap the two moments")
        return begin, end

    async def _moment(self, given: Mapping[str, str], name: str) -> Moment:
        """What a parameter means; now where it is not given. Raises `Refused` (bad request)."""
        if name not in given:
            return Moment(self._inside.head(), is_fixed=False)
        found = await self._historian.ask("position", at=given[name], now_us=self._inside.now_us(), field=name)
        return Moment(found.position, found.is_fixed)
