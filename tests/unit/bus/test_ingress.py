"""Requests in, streamed replies out, over the bus in memory."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from aetherscale.bus.answers import _encoded
from aetherscale.bus.bus import NoResponders
from aetherscale.kernel import replies, wire
from tests.support.ingress_node import CREATED, VM, WAIT_S, Node, clock, cmd, node

__all__ = ["node"]


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
@pytest.mark.our_mistake
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
@pytest.mark.our_mistake
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
    node.ingress.owns("vm", VM, "default", owned=False)
    node.ingress.owns("vm", VM, "default", owned=False)
    await node.ingress.settled()
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


@pytest.mark.our_mistake
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


def test_a_record_that_is_sent_again_is_encoded_once() -> None:
    plain = replies.item({"vm-id": VM, "vm": {"name": "web"}})
    kept = replies.Kept(plain)
    encoded = _encoded(kept)
    assert encoded == _encoded(plain)
    assert _encoded(kept) is encoded
    assert _encoded(plain) is not encoded
