"""The copy of the log in a real JetStream: whatever happens to it, it ends up equal to the log."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale.bus.bus import BusUnavailable
from aetherscale.bus.jetstream import DUPLICATE_WINDOW_NS, StreamError
from aetherscale.bus.pipeline import Pipeline
from aetherscale.eventstore.memory import MemoryLog
from tests.support.eventually import logged
from tests.support.nats_server import NatsServer
from tests.support.publishing import EPOCH, NAME, NODE, WAIT_S, World, world

__all__ = ["world"]

pytestmark = pytest.mark.integration


async def test_everything_in_the_log_gets_to_its_position_in_the_stream(world: World) -> None:
    await world.append(1000)
    publisher = await world.start()
    await world.until_equal()
    await world.append(3)
    await world.until_equal()
    assert publisher.stored_seq == 1003
    assert world.alarms == []


async def test_a_restart_of_the_publisher_continues_where_the_stream_ends(world: World) -> None:
    await world.start()
    for _ in range(3):
        await world.append(100)
        await world.until_equal()
        await world.stop()
        await world.append(50)
        await world.start()
    await world.until_equal()
    created = (await world.ask(f"STREAM.INFO.{NAME}"))["created"]
    await world.stop()
    await world.start()
    await world.append(1)
    await world.until_equal()
    assert (await world.ask(f"STREAM.INFO.{NAME}"))["created"] == created
    assert world.alarms == []


async def test_a_broker_that_is_killed_again_and_again_loses_and_doubles_nothing(world: World) -> None:
    publisher = await world.start()
    written = asyncio.Event()

    async def write() -> None:
        while not written.is_set():
            await world.append(50)
            await world.stream.state()  # so that the writer is not done before the publisher has begun

    async def write_on() -> None:
        while not written.is_set():
            with suppress(BusUnavailable, TimeoutError):
                await write()

    writing = asyncio.create_task(write_on())
    for _ in range(4):
        await world.stored(publisher, publisher.stored_seq + 200)
        await world.server.kill()
        await world.server.start()
    written.set()
    await writing
    await world.until_equal()


async def test_what_a_broker_missed_while_it_was_away_is_published_once_when_it_is_back(world: World) -> None:
    await world.append(10)
    await world.start()
    await world.until_equal()
    await world.server.kill()
    await world.append(5000)
    await world.server.start()
    await world.until_equal()
    assert world.alarms == []


async def test_a_stream_that_somebody_deleted_is_published_again(world: World) -> None:
    await world.append(500)
    await world.start(compare_interval_s=600)
    await world.until_equal()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    await world.bus.listen(f"aether.v1.*.evt.{NODE}.>", "", heard.put_nowait)
    await world.ask(f"STREAM.DELETE.{NAME}")
    await world.append(1)
    await world.until_equal()
    headers = {int(incoming.headers["Nats-Msg-Id"].rpartition(".")[2]): incoming.headers for incoming in drain(heard)}
    assert headers[1]["Aether-Replayed"] == "1"
    assert "is gone" in world.alarms[0]


def drain(queue: asyncio.Queue[Any]) -> list[Any]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


async def test_a_stream_that_somebody_purged_is_published_again(world: World) -> None:
    await world.append(500)
    await world.start()
    await world.until_equal()
    await world.ask(f"STREAM.PURGE.{NAME}", keep=20)
    await world.until_equal()
    await world.ask(f"STREAM.PURGE.{NAME}")
    await world.until_equal()


async def test_a_store_that_was_wiped_is_filled_again(world: World) -> None:
    await world.append(500)
    await world.start()
    await world.until_equal()
    await world.server.kill()
    shutil.rmtree(world.store)
    await world.server.start()
    await world.until_equal()


async def test_a_message_that_somebody_else_published_there_does_not_stay(world: World) -> None:
    await world.append(100)
    await world.start()
    await world.until_equal()
    await world.bus.publish(f"aether.v1.default.evt.{NODE}.vm.x.spam", b"{}")
    await world.append(5)
    await world.until_equal()
    await world.bus.publish(f"aether.v1.default.evt.{NODE}.vm.x.spam", b"{}")
    await world.alarms.until(lambda alarms: len(alarms) == 2)
    await world.until_equal()
    assert "is not event 106 of this node" in world.alarms[1]


async def test_what_would_get_another_position_is_not_stored(world: World) -> None:
    await world.stream.create(1)
    subject = f"aether.v1.default.evt.{NODE}.vm.x.spam"
    await world.bus.publish(subject, b"{}")
    await world.state_at(1)
    async with Pipeline(world.stream, 0, on_failure=lambda: None) as pipeline:
        await pipeline.publish(subject, b"{}", "ours", {})
        with pytest.raises(StreamError, match="wrong last sequence"):
            await pipeline.drained()
    assert [message.message_id for message in await world.content()] == [""]


async def test_the_events_of_an_earlier_log_are_kept_under_another_name(world: World) -> None:
    await world.append(300)
    await world.start()
    await world.until_equal()
    before = await world.content()
    await world.stop()
    await world.open_log(MemoryLog(NODE, "0bbbbbbbbbbbbbbb"))
    await world.append(20)
    await world.start()
    await world.until_equal()
    assert await world.content(f"{NAME}_{EPOCH}_300") == before
    await world.append(10)
    await world.until_equal()
    assert len(await world.content(f"{NAME}_{EPOCH}_300")) == 300
    assert "another log of this node" in world.alarms[0]


async def test_a_log_that_has_lost_acknowledged_events_is_not_published_over_them(world: World) -> None:
    await world.append(300)
    await world.start()
    await world.until_equal()
    before = await world.content()
    await world.stop()
    await world.open_log(MemoryLog(NODE, EPOCH))
    await world.append(20)
    publisher = await world.start()
    await world.alarms.until(bool)
    assert publisher.halted
    await world.append(20)
    assert await world.content() == before
    assert "only up to 20" in world.alarms[0]
    assert len(world.alarms) == 1


async def test_an_event_too_large_for_the_broker_keeps_its_place_without_its_data(world: World) -> None:
    await world.append(5)
    await world.append(1, note="\x01" * 200_000)
    await world.append(5)
    await world.start()
    logged = await world.logged()
    await world.state_at(11)
    sixth = (await world.content())[5]
    assert msgspec.json.decode(sixth.body)["id"] == f"{NODE}.{EPOCH}.6"
    assert msgspec.json.decode(sixth.body)["dataomitted"] is True
    assert [message.seq for message in await world.content()] == [recorded.seq for recorded in logged]


async def test_the_oldest_events_leave_a_stream_that_has_no_more_room(world: World) -> None:
    limit = 4 * 1024 * 1024
    publisher = await world.start(max_bytes=limit)
    await world.append(12_000)
    state = await world.state_at(12_000)
    assert state.first_seq > 1
    assert state.size_bytes <= limit
    await world.stop()
    publisher = await world.start(max_bytes=limit)
    await world.append(10)
    await world.stored(publisher, 12_010)
    assert await publisher.scrub() == ""
    assert world.alarms == []


async def test_a_stream_of_an_older_version_gets_the_settings_of_this_one(world: World) -> None:
    await world.start()
    await world.append(1)
    await world.until_equal()
    await world.stop()
    config = (await world.ask(f"STREAM.INFO.{NAME}"))["config"]
    await world.ask(f"STREAM.UPDATE.{NAME}", **{**config, "duplicate_window": 120 * 10**9})
    await world.start(max_bytes=config["max_bytes"] // 2)
    await world.append(1)
    await world.until_equal()
    now = (await world.ask(f"STREAM.INFO.{NAME}"))["config"]
    assert now == {**config, "max_bytes": config["max_bytes"] // 2}
    assert now["duplicate_window"] == DUPLICATE_WINDOW_NS
    assert world.alarms == []


async def test_a_broker_without_jetstream_is_named_and_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.server = NatsServer(tmp_path / "store", jetstream=False)
    await world.open_log()
    await world.append(3)
    await world.server.start()
    await world.bus.start(WAIT_S)
    with logged("aetherscale.runtime.publisher") as said:
        await world.start()
        await said.until(lambda lines: any("this broker has no JetStream" in line for line in lines))
    await world.stop()
    await world.bus.close()
    await world.server.kill()
