"""What each row of the table does. Every task goes to the node as the call that a message on NATS would have become."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from aetherscale.gateways.http import changes, events, past, problems, queries, reading
from aetherscale.gateways.http.calls import Calls
from aetherscale.gateways.http.commands import Commands
from aetherscale.gateways.http.dispatch import Found, find
from aetherscale.gateways.http.messages import PLAIN, Headers, Request, Response, Stream, json_response
from aetherscale.gateways.http.operations import view_of
from aetherscale.gateways.http.port import Inside
from aetherscale.gateways.http.problems import HttpError
from aetherscale.gateways.http.questions import Asked
from aetherscale.gateways.http.routes import BASE, table
from aetherscale.kernel.errors import Reason, Refused

log = logging.getLogger(__name__)

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; font-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'; frame-src 'self'"
)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

Handle = Callable[[Found, Request], Awaitable[Response | Stream]]


class Handlers:
    """The `Site` behind the connections of one node. `tenant` is whose objects it is about."""

    def __init__(self, inside: Inside, tenant: str, historian: Asked) -> None:
        self._inside = inside
        self._tenant = tenant
        calls = Calls(inside, tenant)
        commands, reads = Commands(calls), reading.Reads(calls)
        self._reads = reads
        self._streams = events.Streams(inside, tenant, calls)
        changing, self._past = changes.Changes(inside, tenant, self._streams, historian), past.Past(inside, historian)
        self._handle: Mapping[str, Handle] = {
            "list": reads.all,
            "show": self._show,
            "ask": reads.ask,
            "create": commands.create,
            "delete": commands.delete,
            "act": commands.act,
            "patch": commands.patch,
            "nodes": self._nodes,
            "node": self._node,
            "operation": self._operation,
            "events": self._streams.open,
            "changes": changing.open,
            "state": self._past.state,
            "diff": self._past.diff,
            "density": self._past.density,
            "why": self._past.why,
            "openapi": self._openapi,
            "problem": self._problem,
            "metrics": self._metrics,
            "health": self._health,
            "readiness": self._readiness,
            "root": self._root,
        }

    def match(self, request: Request) -> Found:
        """As in `Site`."""
        return find(request.method, request.target)

    def headers(self) -> Headers:
        """As in `Site`."""
        return (
            ("date", _date(self._inside.now_us())),
            ("aether-node", self._inside.node),
            ("cache-control", "private, no-cache"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("content-security-policy", CSP),
        )

    async def answer(self, match: Any, request: Request) -> Response | Stream:
        """As in `Site`."""
        found: Found = match
        try:
            if found.route is None:
                return Response(204, headers=(("allow", ", ".join(found.allowed)),))
            return await self._handle[found.route.handler](found, request)
        except Refused as refused:
            return problems.problem(refused)
        except HttpError as wrong:
            return wrong.response
        except Exception:
            log.exception("%s %s failed", request.method, request.target[:200])
            return problems.problem(problems.MISTAKE)

    async def _show(self, found: Found, request: Request) -> Response:
        is_past = any(name in past.OBJECT for name, _ in found.query)
        return await (self._past.one if is_past else self._reads.one)(found, request)

    async def _nodes(self, found: Found, request: Request) -> Response:
        queries.require_none(found.query)
        return json_response({"items": [await self._inside.report()], "count": 1, "next": None})

    async def _node(self, found: Found, request: Request) -> Response:
        queries.require_none(found.query)
        if found.value != self._inside.node:
            what = f"no such node: {found.value[:80]!r}"
            raise Refused(Reason.NOT_FOUND, what, field="node", remedy=f"this is the node {self._inside.node}")
        return json_response(await self._inside.report())

    async def _operation(self, found: Found, request: Request) -> Response:
        queries.require_none(found.query)
        operation = await self._inside.operation(self._tenant, found.value)
        return json_response(view_of(operation))

    async def _openapi(self, found: Found, request: Request) -> Response:
        from aetherscale.gateways.http import openapi  # here, since few ask for it, and every node starts

        queries.require_none(found.query)
        return Response(200, openapi.document(self._inside.version))

    async def _problem(self, found: Found, request: Request) -> Response:
        queries.require_none(found.query)
        page = problems.page_of(found.value)
        if page is None:
            known = ", ".join(problems.TITLES)
            raise HttpError("not-found", f"no such problem: {found.value[:80]!r}", hint=f"one of {known}")
        return page

    async def _metrics(self, found: Found, request: Request) -> Response:
        from aetherscale.gateways.http import metrics  # here, as above

        queries.require_none(found.query)
        return Response(200, metrics.text(await self._inside.measures()), media_type=metrics.MEDIA_TYPE)

    async def _health(self, found: Found, request: Request) -> Response:
        queries.require_none(found.query)
        return Response(200, b"ok\n", media_type=PLAIN)

    async def _readiness(self, found: Found, request: Request) -> Response:
        queries.require_none(found.query)
        why = self._inside.unready()
        if why:
            raise Refused(Reason.UNAVAILABLE, why, retryable=True)
        return Response(200, b"ready\n", media_type=PLAIN)

    async def _root(self, found: Found, request: Request) -> Response:
        queries.require_none(found.query)
        rows = [{"method": row.method, "path": row.template, "about": row.about} for row in table()]
        body = {"node": self._inside.node, "openapi": f"{BASE}/openapi.json", "routes": rows}
        return Response(200, msgspec.json.format(msgspec.json.encode(body)) + b"\n")


def _date(now_us: int) -> str:
    """A time as headers have it (RFC 9110, 5.6.7), in English whatever the host speaks."""
    import time

    at = time.gmtime(now_us // 1_000_000)
    day = f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year}"
    return f"{day} {at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} GMT"
