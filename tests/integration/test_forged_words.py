"""Words that a client forges, through a real nats-server: they end nobody's reply, and make no row and no trace."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aetherscale.__main__ import program
from aetherscale.bus.admission import Admission
from aetherscale.bus.beats import Beat
from aetherscale.bus.bus import Incoming
from aetherscale.bus.heartbeat import Heartbeat
from aetherscale.bus.ingress import Ingress
from aetherscale.bus.nats import NatsBus
from aetherscale.gateways.cli.client import Client
from aetherscale.gateways.cli.failures import Failure
from aetherscale.kernel import replies
from aetherscale.kernel.calls import Call
from aetherscale.kernel.replies import Chunk
from aetherscale.settings import Settings
from tests.integration.test_hostile_messages import Stranger
from tests.support.eventually import logged
from tests.support.nats_server import NatsServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WAIT_S = 30.0
TIME = "2026-01-01T00:00:00.000000Z"
ASK = "aether.v1.sys.all.node.info"
SLOW = "aether.v1.default.cmd.compute.create-vm"


def clock() -> int:
    return time.time_ns() // 1000


class World:
    """A server, a node whose one task lasts until it is let go, and strangers."""

    def __init__(self, directory: Path) -> None:
        self.server = NatsServer(directory / "store")
        self.released = asyncio.Event()
        self.directory = directory

    async def start(self) -> None:
        await self.server.start()
        self.node, self.stranger = await self.connect("node"), await self.connect("stranger")
        self.ingress = Ingress(
            self.node, Admission({"compute": self._serve}), node="n1", owners={}, clock=clock, new_id=lambda: "id",
            keepalive_s=0.05,
        )  # fmt: skip
        await self.ingress.start()
        self.heartbeat = Heartbeat(self.node, self._report, ("n1", "0e", "i1"))
        await self.heartbeat.start()

    async def connect(self, name: str) -> NatsBus:
        bus = NatsBus(lambda: self.server.endpoint, name=name, clock=clock)
        await bus.start(WAIT_S)
        return bus

    async def close(self) -> None:
        self.released.set()
        await self.heartbeat.close()
        await self.ingress.close()
        await self.node.close()
        await self.stranger.close()
        await self.server.kill()

    def client(self) -> Client:
        return Client(
            Settings(state_dir=self.directory, node="n1", nats_url=f"nats://127.0.0.1:{self.server.port}"), program()
        )

    async def listed(self) -> list[Beat]:
        """What `node list` has to show."""

        def ask() -> list[Beat]:
            client = self.client()
            try:
                return client.nodes()
            finally:
                client.close()

        return await asyncio.to_thread(ask)

    async def _report(self) -> Beat:
        return Beat("n1", "0e", 7, "0.1.0", TIME, instance="i1")

    async def _serve_one(self) -> AsyncIterator[Chunk]:
        yield replies.status("allocating")
        await self.released.wait()
        yield replies.result({"done": True})

    def _serve(self, call: Call) -> AsyncIterator[Chunk]:
        return self._serve_one()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.start()
    yield made
    await made.close()


async def test_who_was_asked_whether_it_listens_can_end_no_other_reply(world: World) -> None:
    asked: asyncio.Queue[Incoming] = asyncio.Queue()
    others: list[dict[str, Any]] = []

    async def ask() -> None:
        caller = await world.connect("caller")
        async with aclosing(caller.request(SLOW, b"", timeout_s=WAIT_S)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                others.append(msgspec.json.decode(chunk))
                begun.set()
        await caller.close()

    begun = asyncio.Event()
    asking = asyncio.ensure_future(ask())
    await begun.wait()
    await world.stranger.listen("mine", "", asked.put_nowait)
    await world.stranger.publish(SLOW, b"", reply="mine")
    while not (seen := (await asked.get()).reply):
        pass
    prefix, _, token = seen.rpartition(".")
    guesses = {str(number) for number in range(50)} | {token[:-1] + digit for digit in "0123456789abcdef"} - {token}
    forger = Stranger(world.server.port)
    for guess in sorted(guesses):
        forger.say(f"{prefix}.{guess}".encode(), headers=b"NATS/1.0 503\r\n\r\n")
    for _ in range(3):  # what was forged has been heard by the time that the node has said more
        await asked.get()
    world.released.set()
    await asking
    forger.close()
    assert others[-1] == {"type": "result", "done": True}


async def test_no_inbox_tells_of_another_one(world: World) -> None:
    inboxes = [world.node.inbox() for _ in range(50)]
    heard: asyncio.Queue[Incoming] = asyncio.Queue()
    await world.stranger.listen("echo", "", heard.put_nowait)
    for _ in range(50):
        asyncio.get_running_loop().create_task(_first(world.node, "echo"))
    replies_to = [(await heard.get()).reply for _ in range(50)]
    tokens = [subject.rpartition(".")[2] for subject in inboxes + replies_to]
    assert len(set(tokens)) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)
    assert len({token[:6] for token in tokens}) > 90


async def _first(bus: NatsBus, subject: str) -> None:
    with contextlib.suppress(TimeoutError):
        async for _ in bus.request(subject, b"", timeout_s=0.001):
            return


async def test_garbage_beside_a_node_is_passed_over(world: World) -> None:
    forged = {"node": "n1\nweb  0.1", "epoch": "0e", "seq": 1, "version": "0.1.0", "time": TIME}
    garbage = [b"", b"{", b"[]", b"\xff" * 100, b"[" * 60_000, msgspec.json.encode(forged), b"{}" * 40_000, b"null"]

    def lie(incoming: Incoming) -> None:
        for body in garbage:
            asyncio.get_running_loop().create_task(world.stranger.publish(incoming.reply, body))

    await world.stranger.listen(ASK, "", lie)
    assert [beat.node for beat in await world.listed()] == ["n1"]


@given(
    st.lists(
        st.binary(max_size=50)
        | st.fixed_dictionaries(
            {
                "node": st.text(max_size=10) | st.integers() | st.just("n2"),
                "epoch": st.text(max_size=10) | st.just("0f"),
                "seq": st.integers() | st.text(max_size=3) | st.floats(),
                "version": st.text(max_size=10) | st.just("0.1.0"),
                "time": st.just(TIME) | st.text(max_size=30),
                "troubles": st.lists(st.text(max_size=20), max_size=3),
                "peers": st.lists(st.text(max_size=5) | st.just("n9"), max_size=3),
            }
        ).map(lambda beat: msgspec.json.encode({**beat, "seq": str(beat["seq"]) if beat["seq"] != 1 else 1})),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_said_as_a_heartbeat_the_node_list_is_a_list_of_nodes(
    world: World, bodies: list[bytes]
) -> None:
    with logged("aetherscale.bus") as said:
        for body in bodies:
            await world.stranger.publish("aether.v1.sys.hb.n1", body)
            await world.stranger.publish("aether.v1.sys.hb.n2", body)
        listed = await world.listed()
    assert "n1" in [beat.node for beat in listed]
    assert not [line for line in said if "failed" in line]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"7", b"\xff", b"{}", b'{"type":"status"}', b'{"type":"error"}', b'{"type":"result","vm":7}',
        b'{"type":"item","vm":{"name":"\\u001b[2J"}}', b"[" * 100_000, b'{"type":"error","code":{},"message":[]}',
        b'{"type":"error","code":500,"message":"x","details":{"goes-on":{}}}',
        b'{"type":"error","code":500,"message":"x","details":{"hint":7}}',
    ],
)  # fmt: skip
async def test_a_forged_answer_is_an_error_that_says_so(world: World, body: bytes) -> None:
    def lie(incoming: Incoming) -> None:
        asyncio.get_running_loop().create_task(world.stranger.publish(incoming.reply, body))

    await world.stranger.listen("aether.v1.default.cmd.images.list-images", "aether", lie)

    def ask() -> None:
        client = world.client()
        try:
            client.items("images", "list-images", {})
        finally:
            client.close()

    with pytest.raises(Failure) as failure:
        await asyncio.to_thread(ask)
    assert failure.value.code in (500, 503)
