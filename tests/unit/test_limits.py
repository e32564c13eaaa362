"""What happens at the bounds of queues and waits that have no other test: see docs/limits.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from aetherscale.actors.compute import console as console_module
from aetherscale.actors.compute.console import INPUT_LIMIT, SESSION_LIMIT, Attached, Consoles
from aetherscale.actors.compute.model.sessioncommands import ConsoleInputOptions
from aetherscale.actors.compute.qemu.ports import LINE_LIMIT_BYTES, ReadyPort
from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.bus import protocol
from aetherscale.bus.bus import Incoming
from aetherscale.bus.jetstream import Stream, StreamError
from aetherscale.bus.memory import MemoryBroker
from aetherscale.bus.nats import MAX_UNREAD_CHUNKS, _Waiting
from aetherscale.bus.pipeline import Pipeline
from aetherscale.bus.protocol import Parser, ProtocolError
from aetherscale.bus.services import MAX_ANSWERS, Service, Services
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.store import WrongVersion
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Refused
from aetherscale.runtime import narration
from aetherscale.runtime.actor import CONFLICT_LIMIT
from tests.support.memory_node import MemoryNode

WAIT_S = 30.0


class SlowLine:
    """A serial line that takes a while to be reached, and never takes what is typed."""

    past_bytes = 0

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def output(self) -> AsyncIterator[bytes]:
        while not self.ended.is_set():
            await self.ended.wait()
            yield b""

    async def send(self, data: bytes) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.ended.set()


class SlowLines:
    """Reaches a serial line when it is let."""

    def __init__(self) -> None:
        self.may_reach = asyncio.Event()
        self.may_reach.set()

    async def reach(self) -> Attached:
        await self.may_reach.wait()
        return Attached(SlowLine())


def typed(session: str, data: bytes = b"x") -> tuple[ConsoleInputOptions, Call]:
    call = Call(
        tenant="default", component="compute", task="console-input", body=b"", actor="user:test", command_id="c",
        keyed=False, correlation_id="corr", deadline_us=None,
    )  # fmt: skip
    return ConsoleInputOptions(session=session, data=data), call


class TestConsoles:
    async def test_two_who_draw_the_same_name_at_once_do_not_share_a_session(self) -> None:
        lines = SlowLines()
        consoles = Consoles()
        lines.may_reach.clear()
        first = consoles.attached(lines.reach, "default", "name")
        reaching = asyncio.ensure_future(first.__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="in use"):
            async with asyncio.timeout(WAIT_S):
                await consoles.attached(lines.reach, "default", "name").__aenter__()
        lines.may_reach.set()
        await reaching
        await first.__aexit__(None, None, None)
        async with consoles.attached(lines.reach, "default", "name"):
            pass

    async def test_one_session_too_many_is_refused_until_another_ends(self) -> None:
        consoles = Consoles()
        held = [consoles.attached(SlowLines().reach, "default", f"s{number}") for number in range(SESSION_LIMIT)]
        for each in held:
            await each.__aenter__()
        with pytest.raises(Refused, match=f"{SESSION_LIMIT} others are"):
            await consoles.attached(SlowLines().reach, "default", "one-more").__aenter__()
        await held[0].__aexit__(None, None, None)
        async with consoles.attached(SlowLines().reach, "default", "one-more"):
            pass
        for each in held[1:]:
            await each.__aexit__(None, None, None)

    async def test_a_guest_that_does_not_read_is_typed_to_up_to_a_bound(self) -> None:
        consoles = Consoles()
        async with consoles.attached(SlowLines().reach, "default", "s"):
            for _ in range(INPUT_LIMIT):
                async for _ in consoles.typed(*typed("s")):
                    pass
            with pytest.raises(Refused, match="does not read its serial line"):
                async for _ in consoles.typed(*typed("s")):
                    pass

    async def test_a_session_that_falls_silent_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(console_module, "SILENCE_S", 0.0)
        consoles = Consoles()
        async with asyncio.timeout(WAIT_S), consoles.attached(SlowLines().reach, "default", "s") as session:
            async for _ in session.output():
                pass


async def test_questions_of_discovery_beyond_the_bound_are_dropped() -> None:
    broker = MemoryBroker()
    asker = broker.connect(lambda: 0)
    services = Services(
        broker.connect(lambda: 0), [Service("compute", "", ("create-vm",))], node="n1", instance="0a", version="1",
        started_us=0,
    )  # fmt: skip
    await services.start()
    answers: asyncio.Queue[Incoming] = asyncio.Queue()
    await asker.listen("answers", "", answers.put_nowait)
    for _ in range(MAX_ANSWERS + 50):
        await asker.publish("$SRV.PING", b"", reply="answers")
    async with asyncio.timeout(WAIT_S):
        for _ in range(MAX_ANSWERS):
            await answers.get()
    await asker.publish("$SRV.PING", b"", reply="answers")
    async with asyncio.timeout(WAIT_S):
        await answers.get()
    assert answers.empty()
    await services.close()


def test_a_reply_that_is_not_read_is_given_up_at_its_bound() -> None:
    waiting = _Waiting()
    chunk = Incoming("inbox", b"x", {}, "")
    for _ in range(MAX_UNREAD_CHUNKS):
        waiting.put(chunk)
    assert not waiting.broken
    waiting.put(chunk)
    assert f"more than {MAX_UNREAD_CHUNKS} chunks" in waiting.broken
    assert waiting.chunks.qsize() == MAX_UNREAD_CHUNKS


def test_a_message_that_no_server_sends_is_not_waited_for() -> None:
    parser = Parser()
    parser.feed(f"MSG a 1 {protocol.MAX_FRAME_BYTES}\r\n".encode())
    with pytest.raises(ProtocolError, match="at most"):
        Parser().feed(f"MSG a 1 {protocol.MAX_FRAME_BYTES + 1}\r\n".encode())


class Jetstream:
    """A stream that stores when it is let: takes messages, and acknowledges what `acknowledge` is called for."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.taken: list[Incoming] = []
        self.came = asyncio.Event()
        self.node = self.broker.connect(lambda: 0)
        self.server = self.broker.connect(lambda: 0)
        self.stream = Stream(self.node, "S", ("evt.>",), description="", max_bytes=1)

    async def listen(self) -> None:
        await self.server.listen("evt.>", "", self._take)

    async def acknowledge(self, count: int) -> None:
        for seq, each in enumerate(self.taken[:count], start=1):
            await self.server.publish(each.reply, msgspec.json.encode({"stream": "S", "seq": seq}))

    async def until(self, count: int) -> None:
        while len(self.taken) < count:
            self.came.clear()
            await self.came.wait()

    def _take(self, incoming: Incoming) -> None:
        self.taken.append(incoming)
        self.came.set()


async def test_no_more_is_under_way_to_a_stream_than_its_window() -> None:
    jetstream = Jetstream()
    await jetstream.listen()
    async with Pipeline(jetstream.stream, 0, window=4, ack_timeout_s=WAIT_S, on_failure=lambda: None) as pipeline:

        async def publish_all() -> None:
            for seq in range(1, 7):
                await pipeline.publish("evt.x", b"{}", str(seq), {})

        publishing = asyncio.ensure_future(publish_all())
        async with asyncio.timeout(WAIT_S):
            await jetstream.until(4)
            await asyncio.wait([publishing], timeout=0)
            assert len(jetstream.taken) == 4
            await jetstream.acknowledge(4)
            await publishing
            await jetstream.until(6)
            await jetstream.acknowledge(6)
            await pipeline.drained()


async def test_a_stream_that_stores_nothing_is_not_waited_for_for_ever() -> None:
    jetstream = Jetstream()
    await jetstream.listen()
    told = asyncio.Event()
    async with Pipeline(jetstream.stream, 0, ack_timeout_s=0.01, on_failure=told.set) as pipeline:
        await pipeline.publish("evt.x", b"{}", "1", {})
        async with asyncio.timeout(WAIT_S):
            await told.wait()
        with pytest.raises(StreamError, match=r"nothing was stored for 0.01 s"):
            await pipeline.drained()


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    made = MemoryNode()
    await made.start()
    yield made
    await made.close()


async def test_a_decision_that_always_comes_second_ends_in_a_refusal(
    node: MemoryNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.final("images", "import-image", {"source": "/x.raw", "name": "tiny"})
    tries = 0

    async def second(self: EventLog, *rest: Any, **options: Any) -> None:
        nonlocal tries
        tries += 1
        raise WrongVersion("vm-x", 0, 1)

    monkeypatch.setattr(EventLog, "append", second)
    answer = await node.final("compute", "create-vm", {"image": "tiny", "name": "web"})
    assert (answer["code"], answer["retryable"]) == (503, True)
    assert "changes too quickly" in answer["message"]
    assert tries == CONFLICT_LIMIT


async def test_a_caller_is_kept_informed_up_to_a_bound(node: MemoryNode, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.final("images", "import-image", {"source": "/x.raw", "name": "tiny"})
    monkeypatch.setattr(narration, "WAIT_LIMIT_S", 0.0)
    node.host.behaviour = lambda effect: Behaviour(ready_after_s=None)
    answer = await node.final("compute", "create-vm", {"image": "tiny", "name": "web"})
    assert (answer["code"], answer["message"]) == (504, "the time to wait ran out; the work goes on")


def test_a_line_of_the_ready_channel_beyond_its_bound_is_not_kept() -> None:
    heard: list[bool] = []
    port = ReadyPort(lambda: heard.append(True))
    for _ in range(3):
        port.received(b"x" * LINE_LIMIT_BYTES)
        assert len(port._line) == LINE_LIMIT_BYTES
    port.received(b"ready\n")
    assert not heard
    port.received(b"ready\n")
    assert heard == [True]
