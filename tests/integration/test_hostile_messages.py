"""Garbage on every subject of a node, through a real nats-server: a typed error or nothing, and the node lives."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aetherscale.bus.admission import Admission
from aetherscale.bus.bus import Incoming
from aetherscale.bus.ingress import Ingress
from aetherscale.bus.nats import NatsBus
from aetherscale.bus.services import Service, Services
from aetherscale.kernel import replies, wire
from aetherscale.kernel.calls import Call
from aetherscale.kernel.names import Name
from aetherscale.kernel.replies import Chunk
from tests.support.eventually import asked_until
from tests.support.nats_server import NatsServer

pytestmark = pytest.mark.integration

WAIT_S = 20.0
VM = "0123456789abcdef"
UNANSWERED = 500
"""Requests under way at one time: fewer than a node answers, so that none is refused for that."""


class Options(wire.Message, frozen=True):
    """What the component of this test takes."""

    name: Name = "web"


async def component(call: Call) -> AsyncIterator[Chunk]:
    """Decodes its options as strictly as the real ones do."""
    options = wire.decode(call.body, Options, call.task)
    yield replies.result({"name": options.name})


class Node:
    """A bus, an ingress and the services of one component."""

    def __init__(self, server: NatsServer, name: str = "n1") -> None:
        self.bus = NatsBus(lambda: server.endpoint, name=name, clock=clock)
        self.calls = 0
        self.ingress = Ingress(
            self.bus, Admission({"compute": self.serve}), node=name, owners={"vm": "compute"}, clock=clock,
            new_id=lambda: os.urandom(8).hex(),
        )  # fmt: skip
        self.services = Services(
            self.bus, [Service("compute", "machines", ("create-vm",))], node=name, instance=f"0{name}",
            version="0.1.0", started_us=clock(),
        )  # fmt: skip

    def serve(self, call: Call) -> AsyncIterator[Chunk]:
        self.calls += 1
        return component(call)

    async def start(self) -> None:
        await self.bus.start(WAIT_S)
        await self.ingress.start()
        await self.ingress.own("vm", VM, "default")
        await self.services.start()

    async def close(self) -> None:
        await self.ingress.close()
        await self.services.close()
        await self.bus.close()


def clock() -> int:
    return time.time_ns() // 1000


class Stranger:
    """Speaks to the server in bytes of its own choosing, over a socket; a nats-py client could not say these things."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), WAIT_S)
        self._file = self._socket.makefile("rb")
        self._file.readline()
        self._socket.sendall(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n')

    def say(self, subject: bytes, body: bytes = b"", reply: bytes = b"", headers: bytes | None = None) -> None:
        """One message, and wait until the server has routed it."""
        words = [b"HPUB" if headers is not None else b"PUB", subject, *([reply] if reply else [])]
        if headers is not None:
            words.append(b"%d" % len(headers))
        words.append(b"%d" % (len(headers or b"") + len(body)))
        self._socket.sendall(b" ".join(words) + b"\r\n" + (headers or b"") + body + b"\r\nPING\r\n")
        line = self._file.readline()
        while line not in (b"PONG\r\n", b""):
            assert not line.startswith(b"-ERR"), line
            line = self._file.readline()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class World:
    def __init__(self, server: NatsServer, node: Node, caller: NatsBus, stranger: Stranger) -> None:
        self.server, self.node, self.caller, self.stranger = server, node, caller, stranger

    async def ask(self, subject: str, body: bytes = b"") -> list[dict[str, Any]]:
        return [msgspec.json.decode(chunk) async for chunk in self.caller.request(subject, body, timeout_s=WAIT_S)]

    async def assert_alive(self) -> None:
        """The node answers, and over the same connection as before."""
        assert self.node.bus.disconnected_since_us is None
        assert await self.ask("aether.v1.default.cmd.compute.create-vm") == [{"type": "result", "name": "web"}]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    server = NatsServer(tmp_path / "store")
    await server.start()
    node, caller = Node(server), NatsBus(lambda: server.endpoint, name="caller", clock=clock)
    reconnected: list[None] = []
    node.bus.on_reconnect(lambda: reconnected.append(None))
    await node.start()
    await caller.start(WAIT_S)
    stranger = Stranger(server.port)
    yield World(server, node, caller, stranger)
    stranger.close()
    await caller.close()
    await node.close()
    await server.kill()
    assert reconnected == []


SUBJECTS = [
    b"aether.v1.default.cmd.compute.create-vm",
    b"aether.v1.default.node.n1.compute.create-vm",
    b"aether.v1.default.all.compute.create-vm",
    b"aether.v1.default.auction.compute",
    b"aether.v1.default.obj.vm.0123456789abcdef.create-vm",
    b"aether.v1.default.rpc",
    b"$SRV.PING",
    b"$SRV.INFO.aether-compute",
]

NOT_IN_SUBJECTS = b" \t\r\n"
TOKENS = st.binary(min_size=1, max_size=20).filter(lambda raw: not set(raw) & set(NOT_IN_SUBJECTS + b"."))
HOSTILE = [
    b"\xff\xfe", b"a\x0bb", b"a\x00b", b"*", b">", b"..", b"a..b", b"sys", "ü".encode(), b"x" * 300, b"%s%n",
    b"\xed\xa0\x80", b"-", b"a,b", b"'", b'"', b"$JS", b"\x7f", b"\x1b[2J",
]  # fmt: skip


@pytest.mark.parametrize("token", HOSTILE)
async def test_a_hostile_tenant_task_object_or_reply_harms_nobody(world: World, token: bytes) -> None:
    for subject in (
        b"aether.v1." + token + b".cmd.compute.create-vm",
        b"aether.v1.default.cmd.compute." + token,
        b"aether.v1." + token + b".rpc",
        b"aether.v1." + token + b".obj.vm.0123456789abcdef.create-vm",
        b"aether.v1.default.obj.vm.0123456789abcdef." + token,
        b"$SRV.PING." + token,
    ):
        world.stranger.say(subject, b"{}", b"_INBOX.stranger")
        world.stranger.say(subject, b"{}", token)
    for subject in SUBJECTS:
        world.stranger.say(subject, b"{}", token)
        world.stranger.say(subject, b"{}", b"_INBOX." + token)
    await world.assert_alive()


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"\r\n",
        b"NATS/1.0",
        b"NATS/1.0\r\n",
        b"NATS/1.0 \xff\xff\xff\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: \xff\r\n\r\n",
        b"NATS/1.0\r\n: \r\n:\r\n\xff: x\r\n\r\n",
        b"NATS/1.0\r\nStatus: 503\r\n\r\n",
        b"NATS/1.0\r\nAether-Deadline: 99999999999999999999\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: " + b"x" * 5000 + b"\r\n\r\n",
        b"\x00" * 40,
        os.urandom(200),
    ],
)
async def test_hostile_headers_harm_nobody(world: World, headers: bytes) -> None:
    for subject in SUBJECTS:
        world.stranger.say(subject, b"{}", b"_INBOX.stranger", headers)
        world.stranger.say(subject, b"", b"_INBOX.stranger", headers)
    await world.assert_alive()


@pytest.mark.parametrize("reply", ["$JS.API.STREAM.DELETE.S", "aether.v1.default.cmd.compute.create-vm"])
async def test_the_node_is_nobodys_hand(world: World, reply: str) -> None:
    """Its answers are published with its own rights: not where they would be orders."""
    async for _ in world.caller.request("$JS.API.STREAM.CREATE.S", b'{"name":"S","subjects":["s"]}', timeout_s=WAIT_S):
        break
    for subject in SUBJECTS:
        world.stranger.say(subject, b"{}", reply.encode())
        world.stranger.say(subject, b"not json", reply.encode())
    await world.assert_alive()
    [info] = [chunk async for chunk in first(world.caller, "$JS.API.STREAM.INFO.S")]
    assert b'"error"' not in info
    assert world.node.calls == len([s for s in SUBJECTS if b"$SRV" not in s and s[-3:] != b"rpc"]) * 2 + 1


async def first(bus: NatsBus, subject: str) -> AsyncIterator[bytes]:
    async for chunk in bus.request(subject, b"", timeout_s=WAIT_S):
        yield chunk
        return


BODIES = st.one_of(
    st.binary(max_size=400),
    st.sampled_from(
        [
            b"[" * 10_000, b"{" * 10_000, b'{"a":' * 10_000, b"NaN", b'{"name":NaN}', b'{"name":"a","name":"b"}',
            b'{"name":"../x"}', b'{"name":"a\\u0000b"}', b'{"name":"a\\nb"}', b'{"name":1e999}', b'{"unknown":1}',
            b'{"name":"\\ud800"}', b"\xef\xbb\xbf{}", b'"' + b"x" * 100_000, b"[" + b"1," * 50_000 + b"1]",
            b'{"component":"computing","task":"create-vm","response-channel":"a.>","options":{}}',
            b'{"component":"computing","task":"create-vm","response-channel":"c","options":[]}',
            b'{"component":"' + b"c" * 9000 + b'","task":"t","response-channel":"c"}',
        ]
    ),
)  # fmt: skip


@given(
    subject=st.sampled_from(SUBJECTS), body=BODIES, headers=st.one_of(st.none(), st.binary(max_size=100)), task=TOKENS
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_bytes_on_any_subject_get_a_typed_error_or_nothing(
    world: World, subject: bytes, body: bytes, headers: bytes | None, task: bytes
) -> None:
    answers: asyncio.Queue[Incoming] = asyncio.Queue()
    inbox = world.caller.inbox()
    subscription = await world.caller.listen(inbox, "", answers.put_nowait)
    world.stranger.say(subject, body, inbox.encode(), headers)
    world.stranger.say(b"aether.v1.default.cmd.compute." + task, body, inbox.encode(), headers)
    await world.assert_alive()
    while not answers.empty():
        answer = answers.get_nowait()
        if not answer.ends_stream and not subject.startswith(b"$SRV"):
            chunk = msgspec.json.decode(answer.body)
            assert chunk["type"] in ("result", "error")
            assert chunk.get("code") in (None, 400, 404, 413, 504)
            assert answer.headers["Aether-Node"] == "n1"
    await subscription.unsubscribe()


async def test_a_body_of_the_largest_size_is_refused_with_its_size(world: World) -> None:
    for subject in ("aether.v1.default.cmd.compute.create-vm", "aether.v1.default.rpc"):
        [chunk] = await world.ask(subject, b" " * world.caller.max_body_bytes)
        assert (chunk["code"], chunk["error"]) == (413, "too-large")
        assert str(world.caller.max_body_bytes) in chunk["message"]
    assert world.node.calls == 0


async def test_ten_thousand_bad_messages_leave_nothing_behind(world: World) -> None:
    await world.assert_alive()
    tasks = len(asyncio.all_tasks())
    ended = asyncio.Semaphore(0)
    inbox = world.caller.inbox()

    def count(answer: Incoming) -> None:
        if answer.ends_stream:
            ended.release()

    await world.caller.listen(inbox, "", count)
    for number in range(10_000):
        if number >= UNANSWERED:
            async with asyncio.timeout(WAIT_S):
                await ended.acquire()
        await world.caller.publish("aether.v1.default.cmd.compute.create-vm", b'{"bad":%d}' % number, reply=inbox)
    for _ in range(UNANSWERED):
        async with asyncio.timeout(WAIT_S):
            await ended.acquire()
    await world.assert_alive()

    async def nothing_is_left() -> bool:
        return len(asyncio.all_tasks()) <= tasks

    await asked_until(nothing_is_left)


async def test_two_nodes_share_what_any_can_take_and_each_answers_what_all_are_asked(world: World) -> None:
    second = Node(world.server, "n2")
    await second.start()
    for _ in range(100):
        await world.assert_alive()
    assert world.node.calls + second.calls == 100
    assert min(world.node.calls, second.calls) > 10
    answers: asyncio.Queue[Incoming] = asyncio.Queue()
    await world.caller.listen("mine", "", answers.put_nowait)
    await world.caller.publish("aether.v1.default.all.compute.create-vm", b"", reply="mine")
    async with asyncio.timeout(WAIT_S):
        nodes = {(await answers.get()).headers["Aether-Node"] for _ in range(2)}
    assert nodes == {"n1", "n2"}
    await second.close()
