"""A request over HTTP as the call that it would be on NATS, let in by the same door."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aetherscale.bus import requests
from aetherscale.bus.refusals import CODES
from aetherscale.gateways.http.messages import Request
from aetherscale.gateways.http.port import Inside
from aetherscale.gateways.http.problems import KEY, HttpError
from aetherscale.kernel import wire
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.names import KEY_PATTERN
from aetherscale.kernel.replies import Chunk
from aetherscale.kernel.times import SECOND_US

MAX_TAGS: Final = 16
"""Revisions that one condition may name."""
_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e]{0,128})"')
_TAGS: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,128}"(?:[ \t]*,[ \t]*(?:W/)?"[\x21\x23-\x7e]{0,128}")*')


class Calls:
    """Makes calls of requests, and has them let in."""

    def __init__(self, inside: Inside, tenant: str) -> None:
        self.inside, self.tenant = inside, tenant

    def query(self, request: Request, component: str, task: str, options: Mapping[str, Any] | bytes) -> Call:
        """A call that changes nothing."""
        command_id = self.inside.new_id()
        return Call(
            tenant=self.tenant,
            component=component,
            task=task,
            body=options if isinstance(options, bytes) else wire.encode(options),
            actor=request.caller.actor,
            command_id=command_id,
            keyed=False,
            correlation_id=_correlation(request) or command_id,
        )

    def command(self, request: Request, component: str, task: str, body: bytes, *, wait_s: int, dry_run: bool) -> Call:
        """A call that changes something. It has a key always, so that its operation can be asked for."""
        key = header(request, KEY) or self.inside.new_id()
        return Call(
            tenant=self.tenant,
            component=component,
            task=task,
            body=body,
            actor=request.caller.actor,
            command_id=key,
            keyed=True,
            correlation_id=_correlation(request) or key,
            causation_id=header(request, requests.CAUSATION) or None,
            deadline_us=self.inside.now_us() + wait_s * SECOND_US if wait_s else None,
            revisions=condition(request.headers.get("if-match", "")),
            dry_run=dry_run,
        )

    @asynccontextmanager
    async def admitted(self, call: Call) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chunks of a call's answer. Raises `Refused`; who does not read on leaves the work to go on."""
        admitted = self.inside.admit(call)
        error = ""
        try:
            yield admitted.chunks
        except Refused as refused:
            error = f"{CODES[refused.reason]} {refused.reason.value}"
            raise
        finally:
            if hasattr(admitted.chunks, "aclose"):
                await admitted.chunks.aclose()
            admitted.leave(error)


def header(request: Request, name: str) -> str:
    """A header that is 1 to 128 printable characters; "" where it is not there. Raises `HttpError` (400)."""
    value = request.headers.get(name.lower())
    if value is None:
        return ""
    if not re.fullmatch(KEY_PATTERN, value):
        expected = "expected 1 to 128 printable ASCII characters"
        raise HttpError("bad-request", f"header {name}: got {value[:140]!r}, {expected}", field=name)
    return value


def condition(value: str) -> tuple[str, ...]:
    """The revisions that an `If-Match` names; none for `*`, which an object has that is there.

    A weak one stands for no revision at all. Raises `HttpError` (400).
    """
    if value.strip() in ("", "*"):
        return ()
    if not _TAGS.fullmatch(value.strip()):
        raise HttpError("bad-request", f'header If-Match: got {value[:140]!r}, expected "…" or *', field="If-Match")
    tags = _TAG.findall(value)
    if len(tags) > MAX_TAGS:
        raise HttpError(
            "bad-request", f"header If-Match: got {len(tags)} revisions, expected at most {MAX_TAGS}", field="If-Match"
        )
    return tuple("W/" if weak else tag for weak, tag in tags)


def matches(value: str, tag: str) -> bool:
    """Whether an `If-None-Match` names a tag; weak and strong ones are alike there (RFC 9110, 13.1.2)."""
    return value.strip() == "*" or tag in {f'"{found}"' for _, found in _TAG.findall(value)}


def _correlation(request: Request) -> str:
    return header(request, requests.CORRELATION) or requests.trace_id(request.headers)
