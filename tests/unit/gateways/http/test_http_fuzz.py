"""What anybody could send to any row of the table: never a 500, always a problem of a known type."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aetherscale.gateways.http import queries
from aetherscale.gateways.http.problems import TITLES
from aetherscale.gateways.http.routes import Route, table
from tests.support.http_node import HttpNode, http_node

EXAMPLES = int(os.environ.get("AETHERSCALE_HTTP_EXAMPLES", "400"))
"""How many requests; `AETHERSCALE_HTTP_EXAMPLES=20000` for an hour's."""

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**60, max_value=2**80),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.sampled_from(
        ["web", "tiny", "lab", "0123456789abcdef", "in:tcp:80", "ready", "running", "/srv/x", "10.0.0.0/8"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
segments = st.one_of(
    st.sampled_from(
        ["web", "none", "0123456789abcdef", "A", "%00", "%", "%2F", "..", "%ff", "a" * 70, "é".encode().hex()]
    ),
    st.text(alphabet="abcXYZ019-._~%", min_size=1, max_size=20),
)


def names_of(row: Route) -> list[str]:
    fields = list(queries.fields_of(row.options)) if row.options is not None else []
    for _, _, options in row.actions.values():
        fields += queries.fields_of(options)
    return [*fields, "action", "status"]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes, bytes, list[tuple[str, str]]]:
    """Method, target, body and headers of a request to a row of the table, right in much and wrong in some."""
    row = draw(st.sampled_from(table()))
    path = row.template.replace(f"{{{row.parameter}}}", draw(segments)) if row.parameter else row.template
    known = [
        *names_of(row),
        "wait",
        "dry-run",
        "limit",
        "cursor",
        "after",
        "kind",
        "until",
        "at",
        "from",
        "to",
        "columns",
        "role",
        "all",
    ]
    words = st.one_of(st.sampled_from(["true", "1", "0", "-1", "x", "", "web", "9" * 30, "%41", "%zz", "a=b"]), st.text(
        alphabet="abc019%+=-", max_size=12))  # fmt: skip
    pairs = draw(st.lists(st.tuples(st.sampled_from(known), words), max_size=3))
    # A wait is a wait, also of a fuzzer.
    query = "&".join(f"{name}={value}" for name, value in pairs if name not in ("wait", "follow"))
    method = draw(st.sampled_from([row.method, row.method, row.method, "HEAD", "PUT", "OPTIONS"]))
    body = b""
    if row.takes_body and draw(st.integers(0, 9)) < 9:
        fields = draw(st.dictionaries(st.sampled_from(names_of(row)) | st.text(max_size=8), values, max_size=6))
        if row.actions and draw(st.sampled_from([True, False])):
            fields["action"] = draw(st.sampled_from(list(row.actions)))
        body = json.dumps(fields).encode()
        cut = draw(st.integers(0, 12))
        body = body[: len(body) // 2] if cut == 0 else draw(st.binary(max_size=60)) if cut == 1 else body
    headers = [("Content-Type", draw(st.sampled_from(["application/json"] * 6 + ["text/plain", "", "x/y; charset=z"])))]
    extra = st.sampled_from(
        [
            "Idempotency-Key",
            "If-Match",
            "If-None-Match",
            "Last-Event-ID",
            "traceparent",
            "Aether-Causation-Id",
            "Accept",
        ]
    )
    text = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(str.strip)
    headers += draw(st.lists(st.tuples(extra, text), max_size=2))
    return method, f"{path}?{query}".encode() if query else path.encode(), body, headers


async def ask(node: HttpNode, request: tuple[str, bytes, bytes, list[tuple[str, str]]]) -> tuple[int, bytes, bytes]:
    """Status, head and the beginning of the body: what follows may be a stream without an end."""
    method, target, body, headers = request
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: x", b"Connection: close"]
    lines += [f"{name}: {value}".encode() for name, value in headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    reader, writer = await node.raw(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split()[1])
    content = b""
    if status >= 400 and method != "HEAD":
        content = await reader.read()
    writer.transport.abort()
    return status, head, content


def is_well(status: int, head: bytes, content: bytes, method: str) -> bool:
    assert status != 500, content
    assert status < 400 or b"application/problem+json" in head, head
    if content:
        told: dict[str, Any] = json.loads(content)
        word = told["type"].removeprefix("/problems/")
        assert TITLES[word][0] == told["status"] == status
        assert "Traceback" not in told["detail"]
    return True


@pytest.mark.timeout(3600)
def test_nothing_that_is_sent_is_a_mistake_of_ours(tmp_path: Path) -> None:
    """One node for all requests: what one leaves, the next one meets."""
    with asyncio.Runner() as runner:
        stack = http_node(tmp_path / "s")
        node = runner.run(stack.__aenter__())
        runner.run(node.image())
        statuses: dict[int, int] = {}

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(requests())
        def check(request: tuple[str, bytes, bytes, list[tuple[str, str]]]) -> None:
            async def once() -> tuple[int, bytes, bytes]:
                async with asyncio.timeout(60):
                    return await ask(node, request)

            status, head, content = runner.run(once())
            statuses[status] = statuses.get(status, 0) + 1
            assert is_well(status, head, content, request[0])

        check()
        runner.run(stack.__aexit__(None, None, None))
    assert {200, 400, 404, 405} <= set(statuses), f"it reached too little to say anything: {statuses}"
