"""`GET /v1/changes`: what each event changed, as it happens or from any position on; or a span of it as one JSON value.

It is a stream, unless the query has `until` or the caller accepts JSON alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Final

import msgspec

from aetherscale.bus.tasks import Tasks
from aetherscale.debugger.changes import FILTERS, MAX_CHANGES, Wanted
from aetherscale.gateways.http import events, problems, queries, questions
from aetherscale.gateways.http.calls import matches
from aetherscale.gateways.http.dispatch import Found
from aetherscale.gateways.http.live import Live
from aetherscale.gateways.http.messages import EVENT_STREAM, JSON, Request, Response, Stream
from aetherscale.gateways.http.port import Inside
from aetherscale.gateways.http.problems import HttpError
from aetherscale.gateways.http.questions import Asked
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.names import is_id

PARAMETERS: Final = (*FILTERS, "after", "until")
IMMUTABLE: Final = ("cache-control", "private, max-age=31536000, immutable")
"""Of what is told of the past: it stays as it is."""


class Changes:
    """The readers of one node's changes."""

    def __init__(self, inside: Inside, tenant: str, streams: events.Streams, historian: Asked) -> None:
        self._inside, self._tenant = inside, tenant
        self._streams, self._historian = streams, historian
        self._live: Live | None = None
        self._readers = 0

    async def open(self, found: Found, request: Request) -> Response | Stream:
        """A stream, or a span as JSON. Raises `HttpError` (400) and `Refused`."""
        given, rest = queries.split(found.query, ("after", "until"))
        filters = await self._streams.filters(rest, FILTERS, PARAMETERS, request)
        if "until" in given or _accepts_json_alone(request.headers.get("accept", "")):
            is_fixed = {"after", "until"} <= set(given) and all(
                is_id(each) for name, value in rest if name == "id" for each in value.split(",")
            )
            return await self._page(given, filters, request, is_fixed=is_fixed)
        wanted = Wanted(**{name: frozenset(each) for name, each in filters.items()})
        head = self._inside.head()
        after = events.position(request.headers.get("last-event-id") or given.get("after"), head)
        self._streams.require_room(request.caller.actor)
        return Stream(self._streams.counted(request.caller.actor, self._parts(after, head, wanted)), EVENT_STREAM)

    async def _page(
        self, given: Mapping[str, str], filters: Mapping[str, set[str]], request: Request, *, is_fixed: bool
    ) -> Response:
        head = self._inside.head()
        until = events.position(given.get("until"), head, "until")
        after = events.position(given.get("after"), max(0, until - MAX_CHANGES))
        if after > until or until > head:
            raise HttpError(
                "bad-request",
                f"after {after}, until {until}: expected a span of the log, which ends at event {head}",
                field="until",
            )
        tag = f'"{self._inside.epoch}-{after}-{until}"'
        headers = (("etag", tag), *((IMMUTABLE,) if is_fixed else ()))
        if matches(request.headers.get("if-none-match", ""), tag):
            return Response(304, headers=headers)
        answer = await self._historian.ask("changes", after=after, until=until, wanted=questions.words(filters))
        return Response(200, answer.body, headers)

    async def _parts(self, after: int, head: int, wanted: Wanted) -> AsyncIterator[bytes]:
        yield f"retry: {events.RETRY_MS}\n\n".encode()
        if after > head:
            # The log that the reader knows went further: it was restored, or is another one.
            yield events.message("gap", {"asked": after, "after": head, "epoch": self._inside.epoch}, head)
            after = head
        live = self._joined()
        try:
            async for part in self._from(after, live, wanted):
                yield part
        except Refused as refused:
            # What has begun cannot become a problem any more. Who comes again goes on where this ended.
            yield b"event: problem\ndata: %s\n\n" % msgspec.json.encode(problems.details_of(refused))
        finally:
            await self._left()

    async def _from(self, after: int, live: Live, wanted: Wanted) -> AsyncIterator[bytes]:
        position, words = after, questions.words({name: getattr(wanted, name) for name in FILTERS})
        waiting = Tasks("http changes")
        try:
            while True:
                if position < live.begin:
                    told = await self._historian.ask("told", after=position, until=live.begin, wanted=words)
                    position = told.position
                    parts = [_part(*change) for change in told.changes]
                else:
                    upto = live.head
                    found = live.since(position, self._tenant, wanted)
                    parts = [_part(each.seq, each.change.type, each.data) for each in found]
                    position = max(position, upto)
                if parts:
                    yield b"".join(parts)
                elif position >= live.head:
                    if live.is_ended:
                        return
                    growing = waiting.spawn(live.grown(position), "wait")
                    while not (await asyncio.wait({growing}, timeout=events.HEARTBEAT_S))[0]:
                        yield b":\n\n"
        finally:
            await waiting.close()

    def _joined(self) -> Live:
        """The fold of what happens, with one reader more."""
        if self._live is None:
            self._live = Live(self._inside)
        self._readers += 1
        return self._live

    async def _left(self) -> None:
        self._readers -= 1
        if not self._readers and self._live is not None:
            live, self._live = self._live, None
            with suppress(asyncio.CancelledError):
                await live.close()


def _part(seq: int, name: str, data: bytes) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (seq, name.encode(), data)


def _accepts_json_alone(accept: str) -> bool:
    types = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
    return JSON in types and EVENT_STREAM not in types
