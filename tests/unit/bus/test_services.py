"""The node's components as NATS services, and its heartbeat, over the bus in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from aetherscale.bus import beats
from aetherscale.bus.beats import Beat
from aetherscale.bus.bus import Incoming
from aetherscale.bus.heartbeat import Heartbeat
from aetherscale.bus.memory import MemoryBroker, MemoryBus
from aetherscale.bus.services import Service, Services

WAIT_S = 10.0

SERVICES = [
    Service("compute", "virtual machines", ("create-vm", "list-vms")),
    Service("images", "disk images", ("list-images",)),
]


def clock() -> int:
    return 1_700_000_000_000_000


class Asker:
    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.answers: asyncio.Queue[Incoming] = asyncio.Queue()

    async def ask(self, subject: str, count: int) -> list[dict[str, Any]]:
        await self.bus.publish(subject, b"", reply="answers")
        async with asyncio.timeout(WAIT_S):
            return [msgspec.json.decode((await self.answers.get()).body) for _ in range(count)]


@pytest.fixture
async def world() -> tuple[Services, Asker]:
    broker = MemoryBroker()
    services = Services(
        broker.connect(clock), SERVICES, node="n1", instance="0aaa", version="0.1.0", started_us=clock()
    )
    await services.start()
    asker = Asker(broker.connect(clock))
    await asker.bus.listen("answers", "", asker.answers.put_nowait)
    return services, asker


async def test_every_service_answers_a_ping_for_all_by_name_and_by_id(world: tuple[Services, Asker]) -> None:
    _, asker = world
    both = await asker.ask("$SRV.PING", 2)
    assert [answer["name"] for answer in both] == ["aether-compute", "aether-images"]
    assert both[0] == {
        "type": "io.nats.micro.v1.ping_response", "name": "aether-compute", "id": "0aaa", "version": "0.1.0",
        "metadata": {"node": "n1"},
    }  # fmt: skip
    assert await asker.ask("$SRV.PING.aether-images", 1) == [both[1]]
    assert await asker.ask("$SRV.PING.aether-images.0aaa", 1) == [both[1]]
    await asker.bus.publish("$SRV.PING.aether-images.other", b"", reply="answers")
    [none] = [await asker.answers.get()]
    assert none.is_no_responders


async def test_info_tells_the_subject_of_every_task(world: tuple[Services, Asker]) -> None:
    _, asker = world
    [info] = await asker.ask("$SRV.INFO.aether-compute", 1)
    assert (info["type"], info["description"]) == ("io.nats.micro.v1.info_response", "virtual machines")
    assert info["endpoints"] == [
        {"name": task, "subject": f"aether.v1.*.cmd.compute.{task}", "queue_group": "aether", "metadata": {}}
        for task in ("create-vm", "list-vms")
    ]


async def test_stats_tell_requests_errors_and_time(world: tuple[Services, Asker]) -> None:
    services, asker = world
    services.count("compute", "create-vm", 0.5, "")
    services.count("compute", "create-vm", 1.5, "no room")
    services.count("compute", "an-unknown-task", 1.0, "nobody's")
    [stats] = await asker.ask("$SRV.STATS.aether-compute", 1)
    assert (stats["type"], stats["started"]) == ("io.nats.micro.v1.stats_response", "2023-11-14T22:13:20.000000Z")
    create, listing = stats["endpoints"]
    assert {name: create[name] for name in ("num_requests", "num_errors", "last_error")} == {
        "num_requests": 2, "num_errors": 1, "last_error": "no room",
    }  # fmt: skip
    assert (create["processing_time"], create["average_processing_time"]) == (2_000_000_000, 1_000_000_000)
    assert (listing["num_requests"], listing["average_processing_time"]) == (0, 0)


async def test_who_has_closed_answers_no_more(world: tuple[Services, Asker]) -> None:
    services, asker = world
    await services.close()
    await asker.bus.publish("$SRV.PING", b"", reply="answers")
    assert (await asker.answers.get()).is_no_responders


async def test_a_node_beats_with_the_head_of_its_log_and_leaves_out_what_cannot_be_sent() -> None:
    broker = MemoryBroker()
    heard: asyncio.Queue[Incoming] = asyncio.Queue()
    await broker.connect(clock).listen("aether.v1.sys.hb.*", "", heard.put_nowait)
    heads = iter(range(100))
    asked = asyncio.Event()

    async def report() -> Beat:
        asked.set()
        return Beat("n1", "0e", next(heads), "0.1.0", "2023-11-14T22:13:20.000000Z", instance="i1", cpus=4)

    heartbeat = Heartbeat(broker.connect(clock), report, ("n1", "0e", "i1"), interval_s=0.001)
    await heartbeat.start()
    async with asyncio.timeout(WAIT_S):
        first = await heard.get()
        assert first.subject == "aether.v1.sys.hb.n1"
        assert beats.read(first.body, first.subject).cpus == 4
        broker.down()
        asked.clear()
        await asked.wait()
        broker.up()
        while msgspec.json.decode((await heard.get()).body)["seq"] < 3:
            pass
    await heartbeat.close()
