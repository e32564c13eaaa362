"""From a target to a row of the table: 404, 405 with `Allow`, HEAD as GET, OPTIONS."""

from __future__ import annotations

from functools import cache
from typing import Final

from msgspec import Struct

from aetherscale.gateways.http import queries
from aetherscale.gateways.http.problems import HttpError
from aetherscale.gateways.http.routes import Route, table

GET_LIKE: Final = "HEAD"
MAX_SEGMENTS: Final = 16
"""Parts of a path; one with more leads nowhere."""


class Found(Struct, frozen=True):
    """A request that has found its row."""

    route: Route | None
    """None for OPTIONS, which is answered with what the path takes."""
    value: str = ""
    """What stands for the part of the template that differs."""
    query: queries.Pairs = ()
    allowed: tuple[str, ...] = ()

    @property
    def takes_body(self) -> bool:
        """Whether the request may have a body."""
        return self.route is not None and self.route.takes_body


def find(method: str, target: str) -> Found:
    """The row of a request. Raises `HttpError`: 400, 404, 405."""
    path, _, query = _origin_form(target).partition("?")
    parts = tuple(queries.unquoted(part, "path") for part in path.removeprefix("/").split("/", MAX_SEGMENTS))
    rows = [row for row in table() if _fits(row, parts)]
    if target == "*":
        rows = list(table())
    if not rows:
        raise HttpError("not-found", f"nothing is at {path[:200]!r}", field="path", hint="GET /v1 says what there is")
    # A word of the template goes before a part that may be anything: `/v1/images/build` is no image.
    rows.sort(key=lambda row: bool(row.parameter and row.segments[-1].startswith("{")))
    allowed = _allowed(rows)
    if method == "OPTIONS":
        return Found(None, allowed=allowed)
    wanted = "GET" if method == GET_LIKE else method
    for row in rows:
        if row.method == wanted:
            return Found(row, _value(row, parts), queries.read(query), allowed)
    raise HttpError(
        "method-not-allowed",
        f"{path[:200]} does not take {method[:20]}",
        field="method",
        headers=(("allow", ", ".join(allowed)),),
    )


def is_open(target: str) -> bool:
    """Whether a target is of a path that anyone may ask for who reaches the address."""
    return target in _open_paths()


@cache
def _open_paths() -> frozenset[str]:
    return frozenset(row.template for row in table() if row.role == "anyone")


def authority_of(target: str) -> str:
    """The host that a target in absolute form names (RFC 9112, 3.2.2); "" for any other."""
    rest = target[len("http://") :] if target.lower().startswith("http://") else ""
    return rest.partition("/")[0].partition("?")[0]


def _origin_form(target: str) -> str:
    authority = authority_of(target)
    if authority:
        return target[len("http://") + len(authority) :] or "/"
    if not target.startswith("/") and target != "*":
        raise HttpError("bad-request", f"target: got {target[:80]!r}, expected a path", field="path")
    return target


def _fits(row: Route, parts: tuple[str, ...]) -> bool:
    segments = row.segments
    return len(segments) == len(parts) and all(
        part != "" if segment.startswith("{") else segment == part
        for segment, part in zip(segments, parts, strict=True)
    )


def _value(row: Route, parts: tuple[str, ...]) -> str:
    return next((part for segment, part in zip(row.segments, parts, strict=True) if segment.startswith("{")), "")


def _allowed(rows: list[Route]) -> tuple[str, ...]:
    methods = {row.method for row in rows}
    return tuple(sorted({*methods, "OPTIONS", *({GET_LIKE} if "GET" in methods else ())}))
