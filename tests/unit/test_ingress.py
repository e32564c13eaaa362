"""Requests in, streamed replies out, over the bus in memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from aetherscale.bus.bus import Incoming, NoResponders
from aetherscale.bus.ingress import Ingress
from aetherscale.bus.memory import MemoryBroker, MemoryBus
from aetherscale.kernel import replies, wire
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.replies import Chunk

WAIT_S = 10.0
VM = "0123456789abcdef"


def clock() -> int:
    return time.time_ns() // 1000


class Component:
    """Answers by task, and remembers the calls in their order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.release = asyncio.Event()
        self.left = asyncio.Event()

    def __call__(self, call: Call) -> AsyncIterator[Chunk]:
        self.calls.append(call)
        if call.task == "refuse-at-once":
            raise Refused(409, "no\r\nway", field="x", hint="do this")
        if call.task == "fail-at-once":
            raise RuntimeError("deliberate, at once")
        return self._answer(call)

    async def _answer(self, call: Call) -> AsyncIterator[Chunk]:
        try:
            match call.task:
                case "create-vm":
                    yield replies.status("allocating", vm_id=VM)
                    yield replies.status("starting", vm_id=VM)
                    yield replies.result({"vm-id": VM})
                    yield replies.status("never seen", vm_id=VM)
                case "list-vms":
                    for name in ("a", "b"):
                        yield replies.item({"name": name})
                    yield replies.result({"count": 2})
                case "wait":
                    yield replies.status("waiting")
                    await self.release.wait()
                    yield replies.result({})
                case "refuse":
                    raise Refused(404, "not here")
                case "fail":
                    raise RuntimeError("deliberate")
                case "end-early":
                    yield replies.status("bye")
                case "huge":
                    yield replies.item({"text": "x" * 2_000_000})
                    yield replies.result({})
                case _:
                    pass
        finally:
            self.left.set()


class Node:
    """One ingress, a caller, and ways to ask."""

    def __init__(self, **options: Any) -> None:
        self.broker = MemoryBroker()
        self.component = Component()
        self.counted: list[tuple[str, str, str]] = []
        self.caller = self.broker.connect(clock)
        self.bus = self.broker.connect(clock)
        ids = iter(range(1, 1000))
        self.ingress = Ingress(
            self.bus,
            {"compute": self.component},
            node="n1",
            owners={"vm": "compute"},
            clock=clock,
            new_id=lambda: f"id-{next(ids)}",
            count=lambda component, task, seconds, error: self.counted.append((component, task, error)),
            **options,
        )

    async def ask(self, subject: str, body: bytes = b"", **headers: str) -> list[dict[str, Any]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return [
            msgspec.json.decode(chunk) async for chunk in self.caller.request(subject, body, names, timeout_s=WAIT_S)
        ]

    async def hear(self, subject: str) -> Inbox:
        inbox = Inbox()
        await self.caller.listen(subject, "", inbox.messages.put_nowait)
        return inbox


class Inbox:
    def __init__(self) -> None:
        self.messages: asyncio.Queue[Incoming] = asyncio.Queue()

    async def next(self) -> Incoming:
        async with asyncio.timeout(WAIT_S):
            return await self.messages.get()

    async def until_end(self) -> list[dict[str, Any]]:
        chunks = []
        while not (incoming := await self.next()).ends_stream:
            chunks.append(msgspec.json.decode(incoming.body))
        return chunks


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    await made.ingress.start()
    yield made
    await made.ingress.close()


def cmd(task: str) -> str:
    return f"aether.v1.default.cmd.compute.{task}"


CREATED = [
    {"type": "status", "status": "allocating", "vm-id": VM},
    {"type": "status", "status": "starting", "vm-id": VM},
    {"type": "result", "vm-id": VM},
]


async def test_a_request_gets_its_chunks_up_to_the_final_one(node: Node) -> None:
    assert await node.ask(cmd("create-vm"), b'{"image":"i"}') == CREATED
    assert node.component.calls[0].body == b'{"image":"i"}'
    assert node.component.left.is_set()


async def test_every_chunk_names_the_node_and_the_end_has_no_headers(node: Node) -> None:
    inbox = await node.hear("my.inbox")
    await node.caller.publish(cmd("create-vm"), b"", reply="my.inbox")
    for _ in CREATED:
        assert (await inbox.next()).headers == {"Aether-Node": "n1"}
    end = await inbox.next()
    assert (end.body, end.headers) == (b"", {})


@pytest.mark.parametrize(
    ("task", "code"), [("refuse", 404), ("refuse-at-once", 409), ("fail", 500), ("end-early", 500)]
)
async def test_an_error_is_the_last_chunk_and_in_the_headers(node: Node, task: str, code: int) -> None:
    inbox = await node.hear("my.inbox")
    await node.caller.publish(cmd(task), b"", reply="my.inbox")
    incoming = await inbox.next()
    if task == "end-early":
        incoming = await inbox.next()
    chunk = msgspec.json.decode(incoming.body)
    assert (chunk["type"], chunk["code"]) == ("error", code)
    assert incoming.headers["Nats-Service-Error-Code"] == str(code)
    assert incoming.headers["Nats-Service-Error"].isprintable()
    assert (await inbox.next()).ends_stream


async def test_a_refusal_says_which_field_and_what_to_do(node: Node) -> None:
    assert await node.ask(cmd("refuse-at-once")) == [
        {"type": "error", "code": 409, "error": "conflict", "message": "no\r\nway", "retryable": False,
         "details": {"field": "x", "hint": "do this"}},
    ]  # fmt: skip


@pytest.mark.parametrize("task", ["fail", "fail-at-once"])
async def test_a_fault_of_a_component_is_logged_and_the_node_lives(
    node: Node, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    [chunk] = await node.ask(cmd(task))
    assert (chunk["code"], chunk["error"]) == (500, "internal")
    assert "deliberate" not in chunk["message"]
    assert "RuntimeError: deliberate" in caplog.text
    assert await node.ask(cmd("create-vm")) == CREATED


async def test_calls_are_made_in_the_order_of_their_messages(node: Node) -> None:
    inbox = await node.hear("my.inbox")
    for number in range(100):
        await node.caller.publish(cmd("create-vm"), b"%d" % number, reply="my.inbox")
    for _ in range(100):
        await inbox.until_end()
    assert [call.body for call in node.component.calls] == [b"%d" % number for number in range(100)]


async def test_without_a_reply_subject_the_work_is_done_all_the_same(node: Node) -> None:
    await node.caller.publish(cmd("create-vm"), b"{}")
    async with asyncio.timeout(WAIT_S):
        await node.component.left.wait()
    assert node.component.calls[0].task == "create-vm"


@pytest.mark.parametrize("reply", ["$JS.API.STREAM.DELETE.S", "aether.v1.default.cmd.compute.delete-vm"])
async def test_no_answer_is_published_where_it_would_be_an_order(node: Node, reply: str) -> None:
    spy = await node.hear(reply)
    for task in ("create-vm", "refuse", "refuse-at-once"):
        node.component.left.clear()
        await node.caller.publish(cmd(task), b"", reply=reply)
        await node.ask(cmd("create-vm"))
    assert spy.messages.empty()


async def test_an_object_is_reached_from_when_it_is_owned_until_it_is_not(node: Node) -> None:
    subject = f"aether.v1.default.obj.vm.{VM}.create-vm"
    with pytest.raises(NoResponders):
        await node.ask(subject)
    await node.ingress.own("vm", VM, "default")
    await node.ingress.own("vm", VM, "default")
    assert await node.ask(subject) == CREATED
    assert [call.object_id for call in node.component.calls] == [VM]
    with pytest.raises(NoResponders):
        await node.ask(f"aether.v1.other.obj.vm.{VM}.create-vm")
    await node.ingress.disown("vm", VM, "default")
    await node.ingress.disown("vm", VM, "default")
    with pytest.raises(NoResponders):
        await node.ask(subject)


async def test_ownership_that_changes_quickly_ends_as_it_was_last(node: Node) -> None:
    kept, left = "1" * 16, "2" * 16
    for _ in range(5):
        for object_id in (kept, left):
            node.ingress.owns("vm", object_id, "default", owned=True)
            await asyncio.sleep(0)
            node.ingress.owns("vm", object_id, "default", owned=False)
    node.ingress.owns("vm", kept, "default", owned=True)
    await node.ingress.settled()
    assert await node.ask(f"aether.v1.default.obj.vm.{kept}.create-vm") == CREATED
    with pytest.raises(NoResponders):
        await node.ask(f"aether.v1.default.obj.vm.{left}.create-vm")


async def test_one_node_can_be_addressed(node: Node) -> None:
    assert await node.ask("aether.v1.default.node.n1.compute.create-vm") == CREATED
    with pytest.raises(NoResponders):
        await node.ask("aether.v1.default.node.n2.compute.create-vm")


async def test_what_is_for_all_nodes_gets_one_message_of_each_and_no_end(node: Node) -> None:
    inbox = await node.hear("my.inbox")
    await node.caller.publish("aether.v1.default.all.compute.list-vms", b"", reply="my.inbox")
    incoming = await inbox.next()
    assert msgspec.json.decode(incoming.body) == {
        "type": "result", "count": 2, "items": [{"name": "a"}, {"name": "b"}],
    }  # fmt: skip
    assert incoming.headers == {"Aether-Node": "n1"}
    await node.caller.publish("aether.v1.default.auction.compute", b"", reply="my.inbox")
    assert msgspec.json.decode((await inbox.next()).body)["code"] == 500
    await node.ask(cmd("create-vm"))
    assert inbox.messages.empty()


FIRST_VERSION = b'{"component": "computing", "task": "create-vm", "response-channel": "c-1", "options": {"image": "i"}}'


async def test_the_first_versions_message_is_answered_on_its_channel(node: Node) -> None:
    channel = await node.hear("aether.v1.default.rsp.c-1")
    await node.caller.publish("aether.v1.default.rpc", FIRST_VERSION)
    assert await channel.until_end() == CREATED
    assert (node.component.calls[0].legacy, node.component.calls[0].body) == (True, b'{"image": "i"}')


async def test_the_first_versions_message_is_answered_on_its_reply_subject_too(node: Node) -> None:
    channel = await node.hear("aether.v1.default.rsp.c-1")
    assert await node.ask("aether.v1.default.rpc", FIRST_VERSION) == CREATED
    assert await channel.until_end() == CREATED


async def test_a_bad_first_versions_message_is_answered_wherever_is_known(node: Node) -> None:
    channel = await node.hear("aether.v1.default.rsp.>")
    [chunk] = await node.ask("aether.v1.default.rpc", b'{"component": "computing", "response-channel": "c-1"}')
    assert (chunk["code"], chunk["details"]["field"]) == (400, "task")
    assert await channel.until_end() == [chunk]
    hostile = b'{"component": "computing", "task": "create-vm", "response-channel": "c.>"}'
    [chunk] = await node.ask("aether.v1.default.rpc", hostile)
    assert (chunk["code"], chunk["details"]["field"]) == (400, "response-channel")
    [chunk] = await node.ask("aether.v1.default.rpc", b"not json")
    assert chunk["code"] == 400
    [chunk] = await node.ask("aether.v1.default.rpc", FIRST_VERSION.replace(b"computing", b"baking"))
    assert (chunk["code"], chunk["details"]["field"]) == (404, "component")
    assert node.component.calls == []


async def test_a_body_that_is_too_large_is_refused_unread(node: Node) -> None:
    [chunk] = await node.ask(cmd("create-vm"), b"[" * (wire.MAX_BODY_BYTES + 1))
    assert (chunk["code"], chunk["error"]) == (413, "too-large")
    assert node.component.calls == []


async def test_a_malformed_subject_is_told_so(node: Node) -> None:
    [chunk] = await node.ask("aether.v1.SYS.cmd.compute.create-vm")
    assert (chunk["code"], chunk["details"]["field"]) == (400, "tenant")
    [chunk] = await node.ask("aether.v1.default.cmd.compute.Create_VM")
    assert (chunk["code"], chunk["details"]["field"]) == (400, "subject")


async def test_a_message_after_its_deadline_is_not_carried_out(node: Node) -> None:
    [chunk] = await node.ask(cmd("create-vm"), b"", Aether_Deadline=str(clock() // 1000 - 1))
    assert (chunk["code"], chunk["error"], chunk["retryable"]) == (504, "deadline", True)
    assert node.component.calls == []


async def test_an_answer_that_the_broker_does_not_take_becomes_an_error(node: Node) -> None:
    [chunk] = await node.ask(cmd("huge"))
    assert (chunk["type"], chunk["code"]) == ("error", 413)


async def test_there_is_a_sign_of_life_while_there_is_nothing_to_say() -> None:
    node = Node(keepalive_s=0.01)
    await node.ingress.start()
    inbox = await node.hear("my.inbox")
    await node.caller.publish(cmd("wait"), b"", reply="my.inbox")
    assert msgspec.json.decode((await inbox.next()).body)["status"] == "waiting"
    for _ in range(3):
        sign = msgspec.json.decode((await inbox.next()).body)
        assert (sign["type"], sign["status"]) == ("status", "working")
    node.component.release.set()
    chunks = await inbox.until_end()
    assert chunks[-1] == {"type": "result"}
    await node.ask(cmd("create-vm"))
    assert inbox.messages.empty()
    await node.ingress.close()


async def test_a_reply_that_nobody_listens_to_any_more_ends_and_makes_room() -> None:
    node = Node(keepalive_s=0.01, max_open_streams=1)
    await node.ingress.start()
    inbox = Inbox()
    listening = await node.caller.listen("my.inbox", "", inbox.messages.put_nowait)
    await node.caller.publish(cmd("wait"), b"", reply="my.inbox")
    assert msgspec.json.decode((await inbox.next()).body)["status"] == "waiting"
    sign = msgspec.json.decode((await inbox.next()).body)
    assert sign["status"] == "working"
    assert not node.component.left.is_set()
    await listening.unsubscribe()
    async with asyncio.timeout(WAIT_S):
        await node.component.left.wait()
    assert (await node.ask(cmd("create-vm")))[-1]["type"] == "result"
    await node.ingress.close()


async def test_more_requests_than_the_limit_are_refused_until_there_is_room() -> None:
    node = Node(max_open_streams=2)
    await node.ingress.start()
    inboxes = [await node.hear(f"inbox.{number}") for number in range(2)]
    for number in range(2):
        await node.caller.publish(cmd("wait"), b"", reply=f"inbox.{number}")
        await inboxes[number].next()
    [chunk] = await node.ask(cmd("create-vm"))
    assert (chunk["code"], chunk["retryable"]) == (503, True)
    node.component.release.set()
    for inbox in inboxes:
        await inbox.until_end()
    assert await node.ask(cmd("create-vm")) == CREATED
    await node.ingress.close()


async def test_when_the_node_stops_who_waits_is_told_and_nobody_new_is_heard(node: Node) -> None:
    inbox = await node.hear("my.inbox")
    await node.caller.publish(cmd("wait"), b"", reply="my.inbox")
    await inbox.next()
    await node.ingress.close()
    [chunk] = await inbox.until_end()
    assert (chunk["code"], chunk["retryable"]) == (503, True)
    assert node.component.left.is_set()
    with pytest.raises(NoResponders):
        await node.ask(cmd("create-vm"))


async def test_who_asked_in_the_very_moment_of_the_stop_is_told_too(node: Node) -> None:
    inbox = await node.hear("my.inbox")
    await node.caller.publish(cmd("wait"), b"", reply="my.inbox")
    await asyncio.sleep(0)
    assert len(node.component.calls) == 1
    await node.ingress.close()
    assert (await inbox.until_end())[-1]["code"] == 503


async def test_a_sign_of_life_never_follows_the_final_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(keepalive_s=0)
    await node.ingress.start()
    inbox = await node.hear("my.inbox")
    sent: list[bytes] = []
    publish = MemoryBus.publish

    async def slow(self: MemoryBus, subject: str, body: bytes, *rest: Any, **options: Any) -> None:
        if subject == "my.inbox":
            sent.append(body)
            for _ in range(10):  # turns of the loop in which signs of life are due
                await asyncio.sleep(0)
        await publish(self, subject, body, *rest, **options)

    monkeypatch.setattr(MemoryBus, "publish", slow)
    await node.caller.publish(cmd("wait"), b"", reply="my.inbox")
    node.component.release.set()
    await inbox.until_end()
    assert sent[-2:] == [b'{"type":"result"}', b""]
    await node.ingress.close()


async def test_a_broker_that_goes_away_mid_reply_does_not_end_the_work(node: Node) -> None:
    inbox = await node.hear("my.inbox")
    await node.caller.publish(cmd("wait"), b"", reply="my.inbox")
    await inbox.next()
    node.broker.down()
    node.component.release.set()
    async with asyncio.timeout(WAIT_S):
        await node.component.left.wait()
    node.broker.up()
    assert await node.ask(cmd("create-vm")) == CREATED


async def test_every_call_is_counted_with_its_error(node: Node) -> None:
    await node.ask(cmd("create-vm"))
    await node.ask(cmd("refuse"))
    await node.ask(cmd("fail"))
    assert node.counted == [
        ("compute", "create-vm", ""),
        ("compute", "refuse", "not here"),
        ("compute", "fail", "the node made a mistake; its log says more"),
    ]


async def test_refusals_beyond_all_bounds_are_dropped_once_aloud(
    node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aetherscale.bus.ingress.MAX_REFUSALS", 3)
    blocked = asyncio.Event()
    publish = MemoryBus.publish

    async def stuck(self: MemoryBus, subject: str, *rest: Any, **options: Any) -> None:
        if subject.startswith("stuck."):
            await blocked.wait()
        await publish(self, subject, *rest, **options)

    monkeypatch.setattr(MemoryBus, "publish", stuck)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            await node.caller.publish(cmd("refuse-at-once"), b"", reply="stuck.here")
        await until(lambda: len(node.component.calls) == 10)
    assert caplog.text.count("messages are dropped") == 1
    blocked.set()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - a turn of the loop is all that is waited for
            await asyncio.sleep(0)
