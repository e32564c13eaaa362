"""Connections: what is bounded, in bytes and in time, and that others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import httpx
import pytest

from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.gateways.http import connection, door
from aetherscale.kernel.wire import MAX_BODY_BYTES
from tests.support.http_node import PATIENCE_S, HttpNode, http_node, read_response, until

GET = b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n"


async def served_meanwhile(node: HttpNode) -> None:
    async with node.unix() as client:
        assert (await client.get("/v1/vms")).status_code == 200


@pytest.mark.parametrize("size", [connection.MAX_HEADER_BYTES + 1, 4 * connection.MAX_HEADER_BYTES])
async def test_a_larger_head_is_refused_and_ends_the_connection(node: HttpNode, size: int) -> None:
    answer = await node.said_to(b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nX: " + b"y" * size + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"/problems/header-too-large" in answer
    await served_meanwhile(node)


async def test_a_head_without_an_end_is_read_no_further(node: HttpNode) -> None:
    reader, writer = await node.raw(b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nX: ")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 20 * 1024 * 1024 and not reader.at_eof():
            writer.write(b"y" * 65536)
            sent += 65536
            await writer.drain()
            await asyncio.sleep(0)
    assert sent < 20 * 1024 * 1024, "the whole of it was taken"
    writer.close()
    await served_meanwhile(node)


async def test_a_head_of_the_largest_size_is_served(node: HttpNode) -> None:
    head = b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: "
    room = connection.MAX_HEADER_BYTES - len(head) - 64
    assert (await node.said_to(head + b"y" * room + b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_head_that_comes_too_slowly_is_refused(node: HttpNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_S", 0.3)
    reader, writer = await node.raw(b"GET /v1/vms HTTP/1.1\r\n")

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"X-A: b\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)

    dripping = asyncio.ensure_future(drip())
    status, headers, body = await read_response(reader)
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body)["type"] == "/problems/request-timeout"
    dripping.cancel()
    writer.close()


async def test_a_connection_that_says_nothing_is_closed(node: HttpNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_S", 0.1)
    monkeypatch.setattr(connection, "IDLE_S", 0.1)
    assert await node.said_to(b"") == b""
    reader, writer = await node.raw(GET)
    assert (await read_response(reader))[0] == 200
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b"", "and one that falls silent between requests"
    writer.close()


async def test_a_body_that_does_not_come_is_refused(node: HttpNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_S", 0.1)
    head = b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    assert (await node.said_to(head)).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_is_too_large_is_refused_before_it_comes(node: HttpNode) -> None:
    head = b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    answer = await node.said_to(head % (1 << 30))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert (await node.said_to(head % 10**40)).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


async def test_chunks_are_counted(node: HttpNode) -> None:
    reader, writer = await node.raw(
        b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
    with contextlib.suppress(ConnectionError):
        for _ in range(MAX_BODY_BYTES // 65536 + 1):
            writer.write(chunk)
            await writer.drain()
    assert (await read_response(reader))[0] == 413
    writer.close()
    await served_meanwhile(node)


async def test_a_body_of_the_largest_size_is_read(node: HttpNode, client: httpx.AsyncClient) -> None:
    body = b'{"name": "lab"' + b" " * (MAX_BODY_BYTES - 15) + b"}"
    answer = await client.post("/v1/networks", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 202
    answer = await client.post("/v1/networks", content=body + b" ", headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


async def test_who_waits_for_100_is_told_to_go_on_only_where_the_body_is_wanted(node: HttpNode) -> None:
    head = b"POST /v1/networks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    reader, writer = await node.raw(head % 14 + b"Expect: 100-continue\r\n\r\n")
    assert (await read_response(reader))[0] == 100
    writer.write(b'{"name":"lab"}')
    assert (await read_response(reader))[0] == 202
    writer.close()
    assert (await node.said_to(head % (1 << 30) + b"Expect: 100-continue\r\n\r\n")).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /v1/vms\r\n\r\n", 400),
        (b"GET /v1/vms HTTP/3.0\r\nHost: x\r\n\r\n", 400),
        (b"GET /v1/vms HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /v1/vms HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 200),
        (b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nA\x00: y\r\n\r\n", 400),
        (b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 411),
        (b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 204),
        (b"GET http://x/v1/vms HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 200),
        (b"GET /v1/vms HTTP/1.0\r\n\r\n", 200),
    ],
)  # fmt: skip
async def test_what_is_no_http_is_told_so_in_http(
    node: HttpNode, sent: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.1)
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    answer = await node.said_to(sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    if status >= 400:
        assert b"application/problem+json" in answer
    await served_meanwhile(node)


async def test_requests_that_come_ahead_are_answered_in_their_order(node: HttpNode) -> None:
    reader, writer = await node.raw(
        b"".join(b"GET /v1/vms/vm-%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(50))
    )
    for number in range(50):
        status, _, body = await read_response(reader)
        assert status == 404
        assert f"'vm-{number}'" in json.loads(body)["detail"]
    writer.close()


async def test_a_refused_request_leaves_the_next_one_as_it_is(node: HttpNode) -> None:
    reader, writer = await node.raw(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    assert (await read_response(reader))[0] == 404
    assert (await read_response(reader))[0] == 200
    writer.close()


async def test_one_connection_too_many_is_told_so(node: HttpNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 3)
    made = [await node.raw(GET) for _ in range(3)]
    for reader, _ in made:
        assert (await read_response(reader))[0] == 200
    answer = await node.said_to(b"")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["retryable"] is True
    made[0][1].close()
    async with asyncio.timeout(PATIENCE_S):
        while (again := await node.said_to(b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))[
            :12
        ] != b"HTTP/1.1 200":
            assert again.startswith(b"HTTP/1.1 503 ")
    for _, writer in made:
        writer.close()


async def test_a_caller_that_goes_is_waited_for_no_longer_and_what_it_asked_for_goes_on(node: HttpNode) -> None:
    await node.image()
    node.memory.host.behaviour = lambda vm_id: Behaviour(ready_after_s=None)
    body = b'{"image":"tiny","name":"web"}'
    _, writer = await node.raw(
        b"POST /v1/vms?wait=600 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    await node.memory.until("VmRequested")
    writer.transport.abort()
    await node.memory.until("VmBooted")
    await until(lambda: not node.admission._open)
    await served_meanwhile(node)


async def test_who_waits_is_told_that_the_node_stops(tmp_path: Path) -> None:
    async with http_node(tmp_path / "s") as node:
        await node.image()
        node.memory.host.behaviour = lambda vm_id: Behaviour(ready_after_s=None)
        async with node.unix() as client:
            waiting = asyncio.ensure_future(client.post("/v1/vms?wait=600", json={"image": "tiny", "name": "web"}))
            idle_reader, idle = await node.raw(GET)
            await read_response(idle_reader)
            await node.memory.until("VmBooted")
            await node.close_door()
            answer = await waiting
            assert (answer.status_code, answer.json()["details"]) == (503, {"goes-on": True})
            assert await idle_reader.read() == b"", "one between two requests is closed without a word"
            idle.close()
        assert not node.socket.exists(), "nothing of it is left in the state directory"
        with pytest.raises(FileNotFoundError):
            await node.raw(GET)


async def test_a_caller_that_takes_nothing_costs_only_itself(node: HttpNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WRITE_S", 0.3)
    requests = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200
    _, writer = await asyncio.open_unix_connection(str(node.socket), limit=1)
    writer.write(requests)
    await served_meanwhile(node)
    await until(lambda: not any(each._writer.transport.get_write_buffer_size() for each in node.door._connections))
    writer.transport.abort()


async def test_what_comes_ahead_of_an_answer_is_read_only_so_far(node: HttpNode) -> None:
    await node.image()
    node.memory.host.behaviour = lambda vm_id: Behaviour(ready_after_s=None)
    body = b'{"image":"tiny","name":"web"}'
    head = (
        b"POST /v1/vms?wait=600 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    )
    _, writer = await node.raw(head % (len(body), body))
    await node.memory.until("VmBooted")
    writer.write(b"x" * 4 * 1024 * 1024)
    [serving] = node.door._connections
    await until(lambda: len(serving._ahead) >= connection.MAX_AHEAD_BYTES)
    await served_meanwhile(node)
    assert len(serving._ahead) <= connection.MAX_AHEAD_BYTES + connection.READ_BYTES
    assert writer.transport.get_write_buffer_size() > 2 * 1024 * 1024, "the rest waits where it comes from"


async def test_only_so_many_are_told_that_there_are_too_many(node: HttpNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 0)
    assert (await node.said_to(b"")).startswith(b"HTTP/1.1 503 ")
    monkeypatch.setattr(door, "MAX_TURNED_AWAY", 0)
    with contextlib.suppress(ConnectionError):
        assert await node.said_to(b"") == b""
