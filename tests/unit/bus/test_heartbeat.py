"""A node among others: it answers at once, knows who is there, and says aloud that another has its name."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from aetherscale.bus import beats
from aetherscale.bus.beats import MAX_PEERS, Beat
from aetherscale.bus.bus import Incoming
from aetherscale.bus.heartbeat import MAX_ANSWERS, Heartbeat
from aetherscale.bus.memory import MemoryBroker
from tests.support.eventually import asked_until, logged

TIME = "2026-01-01T00:00:00.000000Z"
ASK = "aether.v1.sys.all.node.info"


def clock() -> int:
    return 0


class Nodes:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.bus = self.broker.connect(clock)
        self.started: list[Heartbeat] = []

    async def start(self, node: str, epoch: str, instance: str, **options: Any) -> Heartbeat:
        async def report() -> Beat:
            return Beat(node, epoch, 1, "0.1.0", TIME, instance=instance)

        made = Heartbeat(self.broker.connect(clock), report, (node, epoch, instance), **options)
        await made.start()
        self.started.append(made)
        return made

    async def say(self, node: str, epoch: str, instance: str, time: str = TIME) -> None:
        beat = Beat(node, epoch, 1, "0.1.0", time, instance=instance)
        await self.bus.publish(f"aether.v1.sys.hb.{node}", msgspec.json.encode(beat))

    async def settle(self) -> None:
        """Wait until everything that was said has been heard: a later message has come through."""
        heard = asyncio.Event()
        subscription = await self.bus.listen("settled", "", lambda _: heard.set())
        for _ in range(4):
            heard.clear()
            await self.bus.publish("settled", b"")
            await heard.wait()
        await subscription.unsubscribe()

    async def close(self) -> None:
        for each in self.started:
            await each.close()


async def test_every_node_answers_who_asks_all_and_names_the_others() -> None:
    nodes = Nodes()
    for name in ("n1", "n2", "n3"):
        await nodes.start(name, f"0{name}", name)
    answers: asyncio.Queue[Incoming] = asyncio.Queue()
    await nodes.bus.listen("mine", "", answers.put_nowait)

    async def all_are_named() -> bool:
        await nodes.bus.publish(ASK, b"", reply="mine")
        found = [beats.read((await answers.get()).body) for _ in range(3)]
        return {(beat.node, beat.peers) for beat in found} == {
            ("n1", ("n2", "n3")), ("n2", ("n1", "n3")), ("n3", ("n1", "n2")),
        }  # fmt: skip

    await asked_until(all_are_named)
    await nodes.close()


async def test_two_nodes_of_one_name_both_say_so() -> None:
    nodes = Nodes()
    with logged("aetherscale.bus.heartbeat") as said:
        first = await nodes.start("same", "0a", "i1")
        second = await nodes.start("same", "0b", "i2")
        await said.until(lambda lines: len(lines) == 2)
    assert all("another node of the same name, same" in line for line in said)
    assert "log 0b, this one has log 0a" in first.trouble
    assert "log 0a, this one has log 0b" in await second.rivalry()
    await nodes.close()


async def test_a_copy_of_the_state_directory_is_another_node_too() -> None:
    nodes = Nodes()
    with logged("aetherscale.bus.heartbeat") as said:
        first = await nodes.start("same", "0a", "i1")
        await nodes.start("same", "0a", "i2")
        await said.until(lambda lines: len(lines) == 2)
    assert "a copy of this node's log" in first.trouble
    await nodes.close()


async def test_who_is_alone_with_its_name_knows_it_after_a_while() -> None:
    nodes = Nodes()
    await nodes.start("n2", "0b", "i2")
    alone = await nodes.start("n1", "0a", "i1", answer_s=0.01)
    assert await alone.rivalry() == ""
    await nodes.close()


async def test_the_last_word_of_a_process_that_has_ended_is_no_other_node() -> None:
    nodes = Nodes()
    alone = await nodes.start("n1", "0a", "i1")
    for _ in range(3):
        await nodes.say("n1", "0a", "i0")
    await nodes.settle()
    assert alone.trouble == ""
    await nodes.say("n1", "0a", "i0", "2026-01-01T00:00:05.000000Z")
    await nodes.settle()
    assert "another node of the same name" in alone.trouble
    await nodes.close()


async def test_garbage_under_the_own_name_is_passed_over() -> None:
    nodes = Nodes()
    alone = await nodes.start("n1", "0a", "i1")
    with logged("aetherscale.bus") as said:
        for body in (b"", b"{", b"[]", b"\xff", b'{"node":"n1"}', msgspec.json.encode({"node": "n1\n", "epoch": "x"})):
            await nodes.bus.publish("aether.v1.sys.hb.n1", body)
            await nodes.bus.publish(ASK, body, reply="$JS.API.STREAM.DELETE.x")
        await nodes.settle()
    assert (alone.trouble, list(alone.peers), list(said)) == ("", [], [])
    await nodes.close()


async def test_a_flood_of_names_is_not_remembered() -> None:
    nodes = Nodes()
    node = await nodes.start("n1", "0a", "i1")
    for number in range(MAX_PEERS + 50):
        await nodes.say(f"m{number}", "0b", "i2")
    await nodes.settle()
    assert len(node.peers) <= MAX_PEERS
    await nodes.close()


async def test_a_flood_of_questions_is_answered_in_part() -> None:
    nodes = Nodes()
    released = asyncio.Event()

    async def report() -> Beat:
        await released.wait()
        return Beat("n1", "0a", 1, "0.1.0", TIME, instance="i1")

    node = Heartbeat(nodes.broker.connect(clock), report, ("n1", "0a", "i1"))
    await node.start()
    answers: list[Incoming] = []
    await nodes.bus.listen("mine", "", answers.append)
    await nodes.settle()
    for _ in range(2 * MAX_ANSWERS):
        await nodes.bus.publish(ASK, b"", reply="mine")
    await nodes.settle()
    released.set()
    await asked_until(lambda: _is(len(answers) >= MAX_ANSWERS - 1))
    await nodes.settle()
    assert len(answers) <= MAX_ANSWERS
    await node.close()


async def _is(true: bool) -> bool:
    return true
