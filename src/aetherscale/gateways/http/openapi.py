"""The table as OpenAPI 3.1, with the schemas of the Structs that the node decodes and sends: there are no others."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import msgspec

from aetherscale.bus.beats import Beat
from aetherscale.components import components
from aetherscale.debugger import moves
from aetherscale.debugger.changes import FILTERS as CHANGED_BY
from aetherscale.debugger.diff import Diff
from aetherscale.debugger.why import Why
from aetherscale.gateways.http import commands, events, past, problems, queries, reading
from aetherscale.gateways.http.messages import EVENT_STREAM, JSON, JSON_LINES
from aetherscale.gateways.http.routes import Route, table

REFERENCE: Final = "#/components/schemas/{name}"
_STATUSES: Final[Mapping[str, tuple[int, ...]]] = {
    "create": (201, 202),
    "delete": (200, 202),
    "act": (200, 202),
    "patch": (200, 202),
    "list": (200, 304),
    "show": (200, 304),
    **dict.fromkeys(("changes", "state", "diff", "density", "why"), (200, 304)),
}
"""The good ends of what a route does, where they are not 200 alone."""
_PAST: Final[Mapping[str, type[msgspec.Struct]]] = {
    "changes": moves.Page,
    "state": moves.State,
    "diff": Diff,
    "density": moves.Density,
    "why": Why,
}
"""What the routes about the past answer with."""
_PROBLEMS: Final = {"type": str, "title": str, "status": int, "detail": str}


@cache
def document(version: str) -> bytes:
    """The document, as JSON, of a node of this version."""
    views = {each.identity.kind: typing.get_type_hints(each.kind.view)["return"] for each in components()}
    bodies = [row.options for row in table() if row.options is not None]
    acted = [options for row in table() for _, _, options in row.actions.values()]
    types = list(dict.fromkeys((*views.values(), *bodies, *acted, commands.Told, Beat, *_PAST.values())))
    schemas, named = msgspec.json.schema_components(types, ref_template=REFERENCE)
    known = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in table():
        paths.setdefault(row.template, {})[row.method.lower()] = _operation(row, known, views)
    told = {
        "openapi": "3.1.0",
        "info": {"title": "aetherscale", "version": version, "license": {"name": "Apache-2.0"}},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**named, **_OF_HTTP},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    return msgspec.json.encode(_for_browsers(told))


_OF_HTTP: Final = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "retryable"],
        "properties": {
            "type": {"type": "string", "enum": [f"/problems/{word}" for word in problems.TITLES]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "retryable": {"type": "boolean"},
            "field": {"type": "string"},
            "hint": {"type": "string"},
            "remedy": {"type": "array"},
            "details": {"type": "object"},
        },
    },
    "Operation": {
        "type": "object",
        "required": ["id", "status", "href"],
        "properties": {
            "id": {"type": "string"},
            "status": {"type": "string", "enum": ["running", "done", "failed"]},
            "href": {"type": "string"},
            "kind": {"type": "string"},
            "object-id": {"type": "string"},
            "object-href": {"type": "string"},
            "first-seq": {"type": "integer"},
            "last-seq": {"type": "integer"},
            "time": {"type": "string"},
            "ended": {"type": "string"},
            "actor": {"type": "string"},
            "problem": {"$ref": "#/components/schemas/Problem"},
        },
    },
}
"""What NATS does not have: what is wrong as HTTP says it, and the operation that stands for waiting."""


def _operation(row: Route, known: Mapping[Any, Any], views: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": row.name,
        "summary": row.about,
        "parameters": list(_parameters(row)),
        "responses": dict(_responses(row, known, views)),
    }
    if row.takes_body:
        told["requestBody"] = {"required": True, "content": {JSON: {"schema": _body(row, known)}}}
    return told


def _body(row: Route, known: Mapping[Any, Any]) -> Any:
    if row.handler == "patch":
        return known[commands.Told]
    if row.handler != "act":
        return known[row.options]
    return {
        "type": "object",
        "required": ["action"],
        "properties": {"action": {"type": "string", "enum": list(row.actions)}},
        "description": "The options of the action beside it: "
        + "; ".join(f"{word}: {options.__name__}" for word, (_, _, options) in row.actions.items()),
    }


def _parameters(row: Route) -> Iterator[dict[str, Any]]:
    if row.parameter:
        yield {"name": row.parameter, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    if row.changes:
        yield _query("wait", {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 3600}, {"const": "ready"}]})
        yield _query("dry-run", {"type": "boolean"})
        yield {"name": problems.KEY, "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 128}}
        yield {"name": "If-Match", "in": "header", "schema": {"type": "string"}}
    if row.handler == "list":
        yield _query("limit", {"type": "integer", "minimum": 1, "maximum": reading.MAX_PAGE})
        yield _query("cursor", {"type": "string"})
    if row.handler in ("events", "changes"):
        for name in events.FILTERS if row.handler == "events" else CHANGED_BY:
            yield _query(name, {"type": "string"})
        yield _query("after", {"type": "integer", "minimum": 0})
        if row.handler == "changes":
            yield _query("until", {"type": "integer", "minimum": 0})
        yield {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}
    for name in _OF_THE_PAST.get(row.handler, ()):
        yield {
            **_query(name, _BOUNDED.get(name, {"type": "string"})),
            "required": (row.handler, name) == ("diff", "from"),
        }
    if row.options is not None and not row.takes_body and row.handler != "show":
        for name in queries.fields_of(row.options):
            if name != row.reference:
                yield _query(name, {"type": "string"})


_OF_THE_PAST: Final = {
    "show": past.OBJECT,
    "state": past.STATE,
    "diff": past.SPAN,
    "density": past.DENSITY,
    "why": past.WHY,
}
"""The parameters of routes about the past."""
_BOUNDED: Final = {
    "limit": {"type": "integer", "minimum": 1, "maximum": reading.MAX_PAGE},
    "columns": {"type": "integer", "minimum": 1, "maximum": past.MAX_COLUMNS},
    "all": {"type": "boolean"},
}


def _query(name: str, schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


def _responses(row: Route, known: Mapping[Any, Any], views: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for status in _STATUSES.get(row.handler, (200,)):
        content = None if status == 304 else _content(row, status, known, views)
        about = {200: "as asked", 201: "made", 202: "accepted; it goes on", 304: "not changed"}[status]
        yield str(status), {"description": about, **({"content": content} if content else {})}
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    yield "default", {"description": "a problem", "content": {problems.MEDIA_TYPE: problem}}


def _content(row: Route, status: int, known: Mapping[Any, Any], views: Mapping[str, Any]) -> dict[str, Any]:
    if row.handler == "events":
        return {EVENT_STREAM: {"schema": {"type": "string"}}}
    if row.handler in _PAST:
        stream = {EVENT_STREAM: {"schema": {"type": "string"}}} if row.streams else {}
        return {**stream, JSON: {"schema": known[_PAST[row.handler]]}}
    if row.streams:
        return {JSON_LINES: {"schema": {"type": "string"}}}
    if row.handler in ("problem", "metrics", "health", "readiness"):
        return {"text/plain": {"schema": {"type": "string"}}}
    if status == 202 or row.handler == "operation":
        return {JSON: {"schema": {"$ref": "#/components/schemas/Operation"}}}
    if row.handler in ("node", "nodes"):
        return {JSON: {"schema": known[Beat] if row.handler == "node" else _page(known[Beat])}}
    if row.kind and row.handler != "ask":
        view = known[views[row.kind]]
        return {JSON: {"schema": _page(view) if row.handler == "list" else view}}
    return {JSON: {"schema": {"type": "object"}}}


def _page(item: Any) -> dict[str, Any]:
    properties = {
        "items": {"type": "array", "items": item},
        "count": {"type": "integer"},
        "next": {"type": ["string", "null"]},
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _for_browsers(told: Any) -> Any:
    """Python's anchors as those of JSON Schema: `\\A…\\Z` are `^…$` there (ECMA-262)."""
    if isinstance(told, dict):
        return {
            name: re.sub(r"\\Z", "$", re.sub(r"\\A", "^", value)) if name == "pattern" and isinstance(value, str)
            else _for_browsers(value)
            for name, value in told.items()
        }  # fmt: skip
    return [_for_browsers(each) for each in told] if isinstance(told, list) else told
