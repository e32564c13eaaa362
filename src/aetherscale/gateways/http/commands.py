"""Routes that change something: 202 with the operation once it is on disk, or with `?wait=` the end of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from aetherscale.gateways.http import queries
from aetherscale.gateways.http.calls import Calls
from aetherscale.gateways.http.dispatch import Found
from aetherscale.gateways.http.messages import JSON, Request, Response, json_response
from aetherscale.gateways.http.operations import view_of
from aetherscale.gateways.http.problems import HttpError
from aetherscale.gateways.http.routes import BASE, Route, base_of
from aetherscale.kernel import wire
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.operations import Operation
from aetherscale.kernel.replies import Chunk

READY_S: Final = 120
"""How long `?wait=ready` waits."""
LONGEST_WAIT_S: Final = 3600
"""The longest `?wait=`."""
PARAMETERS: Final = ("wait", "dry-run")

_JSON = re.compile(r"application/json[ \t]*(?:;[ \t]*charset=\"?utf-8\"?[ \t]*)?", re.IGNORECASE)


class Told(wire.Message, frozen=True):
    """The body of a PATCH: how an object is to be."""

    status: Literal["started", "stopped"]
    """`started` or `stopped`."""


class Commands:
    """The handlers of the routes that change something."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def create(self, found: Found, request: Request) -> Response:
        """`create-<kind>` and the like: the body is the options, as on NATS to the byte."""
        route = _route(found)
        require_json(request)
        given, rest = queries.split(found.query, PARAMETERS)
        queries.require_none(rest, PARAMETERS)
        return await self._command(request, route, given, route.component, route.task, request.body)

    async def delete(self, found: Found, request: Request) -> Response:
        """`delete-<kind>`: the options are in the query."""
        route = _route(found)
        given, rest = queries.split(found.query, PARAMETERS)
        assert route.options is not None
        options = queries.options(_without(rest, route.reference), route.options, PARAMETERS)
        body = wire.encode({route.reference: found.value, **options})
        return await self._command(request, route, given, route.component, route.task, body)

    async def act(self, found: Found, request: Request) -> Response:
        """An action: the body is its word and the options of its task."""
        route = _route(found)
        require_json(request)
        given, rest = queries.split(found.query, PARAMETERS)
        queries.require_none(rest, PARAMETERS)
        options = wire.decode(request.body, dict[str, msgspec.Raw], "body")
        word = _word(options.pop("action", None))
        if word not in route.actions:
            raise HttpError(
                "bad-request",
                f"body: field 'action': got {word[:80]!r}" if word else "body: the field 'action' is missing, a word",
                field="action",
                hint=f"one of {', '.join(route.actions)}",
            )
        component, task, _ = route.actions[word]
        body = with_reference(route.reference, found.value, options)
        return await self._command(request, route, given, component, task, body)

    async def patch(self, found: Found, request: Request) -> Response:
        """How an object is to be, as in the first version."""
        route = _route(found)
        require_json(request)
        given, rest = queries.split(found.query, PARAMETERS)
        queries.require_none(rest, PARAMETERS)
        component, task, _ = route.actions[wire.decode(request.body, Told, "body").status]
        body = wire.encode({route.reference: found.value})
        return await self._command(request, route, given, component, task, body)

    async def _command(
        self, request: Request, route: Route, given: Mapping[str, str], component: str, task: str, body: bytes
    ) -> Response:
        wait_s, dry_run = _wait_s(given), queries.truth(given, "dry-run")
        call = self._calls.command(request, component, task, body, wait_s=wait_s, dry_run=dry_run)
        operation: Operation | None = None
        try:
            async with self._calls.admitted(call) as chunks:
                async for chunk in chunks:
                    if chunk["type"] == "result":
                        return _done(route, call, chunk)
                    operation = operation or _begun(route, call, chunk)
                    if not wait_s:
                        return _accepted(operation)
        except Refused as refused:
            if refused.reason is Reason.DEADLINE and operation is not None:
                return _accepted(operation)
            refused.details.setdefault("operation", call.command_id) if operation is not None else None
            raise
        raise AssertionError("the reply ended without a result or an error")


def require_json(request: Request) -> None:
    """Raises `HttpError` (415) for a body that is not JSON: a form of a page of somebody else can never be that."""
    given = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding", "identity")
    if request.body and (not _JSON.fullmatch(given.strip()) or encoding.lower() != "identity"):
        got = given[:80] if encoding.lower() == "identity" else f"the encoding {encoding[:80]}"
        raise HttpError(
            "unsupported-media-type",
            f"body: got {got or 'no Content-Type'}, expected {JSON}",
            field="Content-Type",
            hint=f"Content-Type: {JSON}; with curl: --json",
        )


def with_reference(field: str, reference: str, options: Mapping[str, Any]) -> bytes:
    """Options about the object that the path names. Raises `HttpError` (400) where they name one themselves."""
    if field in options:
        raise HttpError("bad-request", f"body: the field {field!r} is in the path already", field=field)
    return wire.encode({field: reference, **options} if field else dict(options))


def _route(found: Found) -> Route:
    assert found.route is not None
    return found.route


def _without(pairs: queries.Pairs, reference: str) -> queries.Pairs:
    for name, _ in pairs:
        if name == reference:
            raise HttpError("bad-request", f"query: {name!r} is in the path already", field=name)
    return pairs


def _word(raw: msgspec.Raw | None) -> str:
    try:
        return msgspec.json.decode(raw, type=str) if raw is not None else ""
    except msgspec.ValidationError:
        return ""


def _wait_s(given: Mapping[str, str]) -> int:
    if given.get("wait") == "ready":
        return READY_S
    return queries.whole(given, "wait", 0, 0, LONGEST_WAIT_S)


def _begun(route: Route, call: Call, chunk: Chunk) -> Operation:
    return Operation(call.command_id, "running", route.kind, str(chunk.get(f"{route.kind}-id", "")))


def _accepted(operation: Operation) -> Response:
    """It is on disk, and goes on."""
    place = f"{BASE}/operations/{quote(operation.id, safe='')}"
    return json_response(view_of(operation), 202, (("location", place), ("retry-after", "1")))


def _done(route: Route, call: Call, chunk: Chunk) -> Response:
    """Its end, which is the object as it is then."""
    if call.dry_run:
        return json_response({name: value for name, value in chunk.items() if name != "type"})
    view = chunk[route.kind]
    headers = (
        ("etag", f'"{view.id}-{view.revision}"'),
        ("aether-operation", f"{BASE}/operations/{quote(call.command_id, safe='')}"),
    )
    if route.handler == "create":
        return json_response(view, 201, (*headers, ("location", f"{base_of(route.kind)}/{view.id}")))
    return json_response(view, 200, headers)
