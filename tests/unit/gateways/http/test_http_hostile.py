"""What strangers send: every one of it gets a typed problem, and the connection or the next one goes on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from aetherscale.gateways.http.calls import MAX_TAGS
from aetherscale.gateways.http.routes import table
from tests.support.http_node import HttpNode

JSON = {"Content-Type": "application/json"}


def is_problem(answer: httpx.Response, status: int, field: str | None = None) -> bool:
    told: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.status_code == told["status"] == status, answer.text
    assert {"type", "title", "status", "detail", "retryable"} <= told.keys()
    assert field is None or told.get("field") == field, answer.text
    return True


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "name"),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'"x"', None),
        (b"{}", "name"),
        (b'{"name": 1}', "name"),
        (b'{"name": "lab", "name": "other"}', "name"),
        (b'{"name": "lab", "colour": "red"}', "colour"),
        (b'{"name": "lab", "kind": "odd"}', "kind"),
        (b'{"name": "LAB"}', "name"),
        (b'{"name": "la\\u0000b"}', "name"),
        (b'{"name": "\\ud800"}', "name"),
        (b'{"name": "\xff"}', None),
        (b'{"name": ' + b"9" * 5000 + b"}", None),
        (b'{"name": NaN}', None),
        (b'{"name": ' + b"[" * 40 + b"]" * 40 + b"}", None),
    ],
)
async def test_a_body_that_is_none_is_refused_with_its_field(
    client: httpx.AsyncClient, body: bytes, field: str | None
) -> None:
    assert is_problem(await client.post("/v1/networks", content=body, headers=JSON), 400, field)
    assert (await client.get("/v1/networks")).json()["count"] == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "action"),
        (b'{"action": "fly"}', "action"),
        (b'{"action": 7}', "action"),
        (b'{"action": null}', "action"),
        (b'{"action": "stop", "action": "start"}', "action"),
        (b'{"action": "stop", "vm-id": "other"}', "vm-id"),
        (b'{"action": "stop", "kill": "yes"}', "kill"),
        (b'{"action": "stop", "grace-s": -1}', "grace-s"),
        (b'{"action": "stop", "odd": 1}', "odd"),
    ],
)
async def test_an_action_that_is_none_is_refused_with_its_field(
    client: httpx.AsyncClient, body: bytes, field: str
) -> None:
    assert is_problem(await client.post("/v1/vms/web/actions", content=body, headers=JSON), 400, field)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({}, 415),
        ({**JSON, "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "Application/JSON; charset=UTF-8"}, 202),
    ],
)
async def test_a_body_is_json_and_says_so(client: httpx.AsyncClient, headers: dict[str, str], status: int) -> None:
    answer = await client.post("/v1/networks", content=b'{"name": "lab"}', headers=headers)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("target", "status", "field"),
    [
        ("/", 404, "path"),
        ("/v2/vms", 404, "path"),
        ("/v1/vms/", 404, "path"),
        ("/v1/vms//actions", 404, "path"),
        ("/v1/vms/../vms", 404, "path"),
        ("/" + "/".join("x" * 40), 404, "path"),
        ("/v1/vms/UPPER", 400, "vm-id"),
        ("/v1/vms/a%2Fb", 400, "vm-id"),
        ("/v1/vms/%2e%2e", 400, "vm-id"),
        ("/v1/vms/%00", 400, "path"),
        ("/v1/vms/%", 400, "path"),
        ("/v1/vms/%zz", 400, "path"),
        ("/v1/vms/%ff", 400, "path"),
        ("/v1/vms?all=maybe", 400, "all"),
        ("/v1/vms?all=true&all=true", 400, "all"),
        ("/v1/vms?ALL=true", 400, "ALL"),
        ("/v1/vms?=", 400, ""),
        ("/v1/vms?limit=0", 400, "limit"),
        ("/v1/vms?limit=99999999999999999999999", 400, "limit"),
        ("/v1/vms?limit=1e3", 400, "limit"),
        ("/v1/vms?limit=%D9%A1", 400, "limit"),
        ("/v1/vms?labels=%ff", 400, "query"),
        ("/v1/vms/web?all=true", 400, "all"),
        ("/v1/vms/web/logs?tail-bytes=-1", 400, "tail-bytes"),
        ("/v1/vms/web/logs?since-s=inf", 400, "since-s"),
        ("/v1/vms/web/logs?vm-id=other", 400, "vm-id"),
        ("/v1/operations/" + "k" * 200, 404, "operation"),
        ("/v1/events?after=-1", 400, "after"),
        ("/v1/events?colour=red", 400, "colour"),
        ("/v1/openapi.json?x=1", 400, "x"),
        ("/problems/none", 404, None),
    ],
)
async def test_a_target_that_leads_nowhere_is_refused_with_its_field(
    node: HttpNode, client: httpx.AsyncClient, target: str, status: int, field: str | None
) -> None:
    # Byte by byte: a client tidies targets up.
    answer = await node.said_to(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode(), answer
    told = json.loads(body)
    assert told["status"] == status
    assert field in (None, "") or told["field"] == field, told


@pytest.mark.parametrize(
    "parameter", ["wait=-1", "wait=3601", "wait=soon", "wait=1&wait=1", "dry-run=perhaps", "odd=1"]
)
async def test_a_parameter_of_a_command_that_is_none_is_refused(client: httpx.AsyncClient, parameter: str) -> None:
    answer = await client.post(f"/v1/networks?{parameter}", json={"name": "lab"})
    assert is_problem(answer, 400, parameter.partition("=")[0])
    assert (await client.get("/v1/networks")).json()["count"] == 0


@pytest.mark.parametrize(
    "condition", [", ".join(['"x"'] * (MAX_TAGS + 1)), "x", '"x', "''", '"a""b"', '"' + "x" * 200 + '"']
)
async def test_a_condition_that_is_none_is_refused(client: httpx.AsyncClient, condition: str) -> None:
    answer = await client.post("/v1/networks", json={"name": "lab"}, headers={"If-Match": condition})
    assert is_problem(answer, 400, "If-Match")


async def test_a_weak_condition_fits_nothing(client: httpx.AsyncClient) -> None:
    await client.post("/v1/networks?wait=30", json={"name": "lab"})
    tag = (await client.get("/v1/networks/lab")).headers["etag"]
    assert is_problem(await client.delete("/v1/networks/lab", headers={"If-Match": f"W/{tag}"}), 412)


@pytest.mark.parametrize("route", table(), ids=lambda route: route.name)
async def test_every_path_says_which_methods_it_takes(client: httpx.AsyncClient, route: Any) -> None:
    path = route.template.replace(f"{{{route.parameter}}}", "x") if route.parameter else route.template
    allowed = {method.strip() for method in (await client.options(path)).headers["allow"].split(",")}
    assert route.method in allowed
    assert "OPTIONS" in allowed
    assert ("HEAD" in allowed) == ("GET" in allowed)
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - allowed:
        answer = await client.request(method, path)
        assert is_problem(answer, 405, "method")
        assert {each.strip() for each in answer.headers["allow"].split(",")} == allowed


async def test_a_head_is_that_of_the_get_without_its_body(client: httpx.AsyncClient) -> None:
    for path, status in (("/v1/vms", 200), ("/v1/vms/none", 404), ("/v1/openapi.json", 200), ("/v1/events", 200)):
        head = await client.head(path)
        assert (head.status_code, head.content) == (status, b"")
        if path != "/v1/events":
            assert head.headers["content-length"] == str(len((await client.get(path)).content))


async def test_what_takes_no_body_refuses_one(client: httpx.AsyncClient) -> None:
    assert is_problem(await client.request("GET", "/v1/vms", content=b"{}", headers=JSON), 400, "body")
    assert is_problem(await client.request("DELETE", "/v1/vms/web", content=b"{}", headers=JSON), 400, "body")


async def test_every_response_has_the_headers_that_keep_browsers_from_harm(client: httpx.AsyncClient) -> None:
    for path in ("/v1/vms", "/nothing", "/v1/openapi.json"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["aether-node"] == "host1"
        assert not [name for name in headers if name.startswith("access-control")]
