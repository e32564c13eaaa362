"""Signs of life, limits, and ends: what a caller hears when not all is well."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from aetherscale.bus.bus import NoResponders
from aetherscale.bus.memory import MemoryBus
from tests.support.ingress_node import CREATED, WAIT_S, Inbox, Node, cmd, node, until

__all__ = ["node"]


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


async def test_no_tenant_uses_up_the_room_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aetherscale.bus.admission.MAX_TENANTS_STREAMS", 3)
    node = Node(max_open_streams=2)
    await node.ingress.start()
    inboxes = [await node.hear(f"inbox.{number}") for number in range(3)]
    for number in range(2):
        await node.caller.publish(cmd("wait"), b"", reply=f"inbox.{number}")
        await inboxes[number].next()
    assert (await node.ask(cmd("create-vm")))[0]["code"] == 503
    other = "aether.v1.other.cmd.compute."
    assert await node.ask(f"{other}create-vm") == CREATED
    await node.caller.publish(f"{other}wait", b"", reply="inbox.2")
    await inboxes[2].next()
    assert (await node.ask(f"{other}create-vm"))[0]["code"] == 503, "more than the node can hold is too much for all"
    node.component.release.set()
    for inbox in inboxes:
        await inbox.until_end()
    assert await node.ask(cmd("create-vm")) == CREATED
    assert not node.ingress._admission._open, "a tenant that waits for nothing is forgotten"
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


async def test_a_reply_whose_last_chunk_was_cut_off_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end without a result before it would say that all is done."""
    node = Node()
    await node.ingress.start()
    inbox = await node.hear("my.inbox")
    cut_off = asyncio.Event()
    publish = MemoryBus.publish

    async def stuck(self: MemoryBus, subject: str, body: bytes, *rest: Any, **options: Any) -> None:
        if body == b'{"type":"result"}':
            cut_off.set()
            await asyncio.Event().wait()
        await publish(self, subject, body, *rest, **options)

    monkeypatch.setattr(MemoryBus, "publish", stuck)
    await node.caller.publish(cmd("wait"), b"", reply="my.inbox")
    assert msgspec.json.decode((await inbox.next()).body)["status"] == "waiting"
    node.component.release.set()
    async with asyncio.timeout(WAIT_S):
        await cut_off.wait()
    await node.ingress.close()
    await asyncio.sleep(0)
    assert inbox.messages.empty()


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


@pytest.mark.our_mistake
async def test_every_call_is_counted_with_the_kind_of_its_error(node: Node) -> None:
    await node.ask(cmd("create-vm"))
    await node.ask(cmd("refuse"))
    await node.ask(cmd("fail"))
    assert node.counted == [
        ("compute", "create-vm", ""),
        ("compute", "refuse", "404 not-found"),
        ("compute", "fail", "500 internal"),
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
