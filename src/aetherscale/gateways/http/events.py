"""`GET /v1/events`: the log as server-sent events, from any position on.

A reader follows the log by itself: the newest events are in memory for all, older ones are read from the file. So one
that stops costs its connection and nothing else, no event is kept for it, and none is left out when it goes on or comes
again.
Source: the WHATWG's HTML standard, section 9.2.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.bus import cloudevents
from aetherscale.bus.tasks import Tasks
from aetherscale.components import identities
from aetherscale.gateways.http import queries
from aetherscale.gateways.http.calls import Calls
from aetherscale.gateways.http.dispatch import Found
from aetherscale.gateways.http.messages import EVENT_STREAM, Request, Stream
from aetherscale.gateways.http.port import Inside
from aetherscale.gateways.http.problems import HttpError
from aetherscale.gateways.http.routes import table
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.messages import Recorded, split_stream
from aetherscale.kernel.names import is_id

HEARTBEAT_S: Final = 15.0
"""How often a stream says that it is alive while nothing happens."""
RETRY_MS: Final = 1000
"""How soon a reader that was cut off comes back."""
MAX_STREAMS: Final = 1024
"""Readers of events at one time; one more is refused (503)."""
MAX_CALLERS_STREAMS: Final = 256
"""Readers of events of one caller."""
MAX_EVENT_BYTES: Final = 1024 * 1024
"""A larger event comes without its `data`, as on JetStream: the log has all of it."""
MAX_ENCODED: Final = 256
"""The newest events that are kept as they are sent, for all readers."""
FILTERS: Final = ("kind", "id", "type", "actor", "command")
PARAMETERS: Final = (*FILTERS, "after")
KINDS: Final = frozenset({*(each.kind for each in identities()), "claim"})
"""Of what there are events: the kinds of objects, and the keys that they reserve."""
_SEQ = re.compile(r"[0-9]{1,18}")


class Wanted(Struct, frozen=True):
    """The events that a reader wants. Each is a set of words of which one has to fit; an empty one fits all."""

    kind: frozenset[str] = frozenset()
    id: frozenset[str] = frozenset()
    type: frozenset[str] = frozenset()
    actor: frozenset[str] = frozenset()
    command: frozenset[str] = frozenset()

    def has(self, recorded: Recorded) -> bool:
        """Whether an event is among them."""
        kind, aggregate_id = split_stream(recorded.stream)
        found = {
            "kind": kind,
            "id": aggregate_id,
            "type": type(recorded.event).__name__,
            "actor": recorded.actor,
            "command": recorded.command_id,
        }
        return all(not (words := getattr(self, name)) or found[name] in words for name in FILTERS)


class Streams:
    """The readers of one node's events."""

    def __init__(self, inside: Inside, tenant: str, calls: Calls) -> None:
        self._inside, self._tenant, self._calls = inside, tenant, calls
        self._readers: dict[str, int] = {}
        self._encoded: dict[int, bytes] = {}

    async def open(self, found: Found, request: Request) -> Stream:
        """A stream. Raises `HttpError` (400) and `Refused` (not found, unavailable)."""
        given, rest = queries.split(found.query, ("after",))
        words = await self.filters(rest, FILTERS, PARAMETERS, request)
        wanted = Wanted(**{name: frozenset(each) for name, each in words.items()})
        head = self._inside.head()
        after = position(request.headers.get("last-event-id") or given.get("after"), head)
        actor = request.caller.actor
        self.require_room(actor)
        return Stream(self.counted(actor, self._begun(after, head, wanted)), EVENT_STREAM)

    async def filters(
        self, pairs: queries.Pairs, filters: Sequence[str], known: Sequence[str], request: Request
    ) -> dict[str, set[str]]:
        """The words of each filter that a query has. Raises `HttpError` (400) and `Refused` (not found)."""
        words: dict[str, set[str]] = {}
        for name, value in pairs:
            if name not in filters:
                raise queries.unknown(name, known)
            words.setdefault(name, set()).update(value.split(","))
        if unknown := sorted(words.get("kind", set()) - KINDS):
            raise HttpError(
                "bad-request",
                f"query: there is no kind {unknown[0][:64]!r}",
                field="kind",
                hint=f"known: {', '.join(sorted(KINDS))}",
            )
        if "id" in words:
            words["id"] = {await self._id_of(each, words.get("kind", set()), request) for each in words["id"]}
        return words

    def require_room(self, actor: str) -> None:
        """Raises `Refused` (unavailable) where there are as many readers as are served."""
        if sum(self._readers.values()) >= MAX_STREAMS or self._readers.get(actor, 0) >= MAX_CALLERS_STREAMS:
            raise Refused(
                Reason.UNAVAILABLE,
                f"this node has {sum(self._readers.values())} readers of events, as many as it serves at one time",
                retryable=True,
                remedy="end one, or wait a moment",
            )

    async def counted(self, actor: str, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The parts of one reader more, for as long as it reads."""
        self._readers[actor] = self._readers.get(actor, 0) + 1
        try:
            async with aclosing(parts):  # type: ignore[type-var]
                async for part in parts:
                    yield part
        finally:
            self._readers[actor] -= 1
            if not self._readers[actor]:
                del self._readers[actor]

    async def _begun(self, after: int, head: int, wanted: Wanted) -> AsyncIterator[bytes]:
        yield f"retry: {RETRY_MS}\n\n".encode()
        if after > head:
            # The log that the reader knows went further: it was restored, or is another one.
            yield message("gap", {"asked": after, "after": head, "epoch": self._inside.epoch}, head)
            after = head
        async for part in self._parts(after, wanted):
            yield part

    async def _parts(self, after: int, wanted: Wanted) -> AsyncIterator[bytes]:
        reading = Tasks("http events")
        async with aclosing(self._inside.events(after)) as pages:
            try:
                following = reading.spawn(_next(pages), "follow")
                while True:
                    done, _ = await asyncio.wait({following}, timeout=HEARTBEAT_S)
                    if not done:
                        yield b":\n\n"
                        continue
                    if (page := following.result()) is None:
                        return
                    following = reading.spawn(_next(pages), "follow")
                    told = b"".join(self._told(each) for each in page if self._is_for(each, wanted))
                    if told:
                        yield told
            finally:
                await reading.close()

    def _is_for(self, recorded: Recorded, wanted: Wanted) -> bool:
        return recorded.tenant == self._tenant and wanted.has(recorded)

    def _told(self, recorded: Recorded) -> bytes:
        told = self._encoded.get(recorded.seq)
        if told is None:
            data = cloudevents.encode(recorded, MAX_EVENT_BYTES)
            name = type(recorded.event).__name__.encode()
            told = b"id: %d\nevent: %s\ndata: %s\n\n" % (recorded.seq, name, data)
            if recorded.seq > self._inside.head() - MAX_ENCODED:
                self._encoded[recorded.seq] = told
                while len(self._encoded) > MAX_ENCODED:
                    del self._encoded[next(iter(self._encoded))]
        return told

    async def _id_of(self, reference: str, kinds: set[str], request: Request) -> str:
        """The id of an object that a filter names. Raises `Refused` (not found)."""
        if is_id(reference):
            return reference
        refused: Refused | None = None
        for route in table():
            if route.handler != "show" or (kinds and route.kind not in kinds):
                continue
            call = self._calls.query(request, route.component, route.task, {route.reference: reference})
            try:
                async with self._calls.admitted(call) as chunks:
                    async for chunk in chunks:
                        if chunk["type"] == "result":
                            view: Any = chunk[route.kind]
                            return str(view.id)
            except Refused as not_there:
                refused = refused or not_there
        raise refused or Refused(Reason.NOT_FOUND, f"no such object: {reference[:80]!r}", field="id")


def position(given: str | None, default: int, field: str = "after") -> int:
    """A position that is given: for a reader that of the event that it saw last. Raises `HttpError` (400)."""
    if given is None:
        return default
    if not _SEQ.fullmatch(given):
        raise HttpError(
            "bad-request",
            f"{field}: got {given[:80]!r}, expected the id of an event, its position in the log",
            field=field,
        )
    return int(given)


def message(name: str, value: Any, seq: int) -> bytes:
    """An event of a stream as it is sent."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (seq, name.encode(), msgspec.json.encode(value))


async def _next(pages: AsyncGenerator[Sequence[Recorded], None]) -> Sequence[Recorded] | None:
    """The next page; None where there are no more."""
    return await anext(pages, None)
