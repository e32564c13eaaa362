"""A copy of the log that was altered is found out, by its counters or by reading through it, and mended."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.publishing import NAME, NODE, World, world

__all__ = ["world"]

pytestmark = pytest.mark.integration


async def forge(world: World, seq: int, **changes: Any) -> None:
    """Make the stream anew as it was, but for one message: lost (None) or another."""
    messages = await world.content()
    info = await world.ask(f"STREAM.INFO.{NAME}")
    config = {**info["config"], "deny_delete": False}
    await world.ask(f"STREAM.DELETE.{NAME}")
    await world.ask(f"STREAM.CREATE.{NAME}", **config)
    for message in messages:
        if message.seq == seq:
            message = msgspec.structs.replace(message, **changes)
        headers = {"Nats-Msg-Id": message.message_id}
        await world.bus.publish(message.subject, message.body, headers)
    await world.state_at(len(messages))


async def test_a_hole_that_the_counters_know_of_is_filled(world: World) -> None:
    await world.append(100)
    await world.start()
    await world.until_equal()
    await world.stop()
    await forge(world, 0)
    await world.ask(f"STREAM.MSG.DELETE.{NAME}", seq=50)
    await world.start()
    await world.until_equal()
    assert "1 of its events are missing" in world.alarms[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"body": b'{"specversion":"1.0","data":{"number":666}}'},
        {"message_id": "n1.0aaaaaaaaaaaaaaa.5000"},
        {"subject": f"aether.v1.default.evt.{NODE}.vm.x.other"},
    ],
)
async def test_a_message_that_was_silently_altered_is_found_by_reading_through(
    world: World, changes: dict[str, Any]
) -> None:
    await world.append(1200)
    await world.start()
    await world.until_equal()
    await world.stop()
    await forge(world, 777, **changes)
    publisher = await world.start(compare_interval_s=600)
    await world.stored(publisher, 1200)
    assert "event 777" in await publisher.scrub()
    await world.alarms.until(bool)
    await world.until_equal()
    assert await publisher.scrub() == ""


@pytest.mark.parametrize("index_lost", [False, True])
async def test_a_bit_that_flipped_on_the_brokers_disk_is_found_and_mended(world: World, index_lost: bool) -> None:
    await world.append(1000)
    publisher = await world.start(compare_interval_s=600, scrub_interval_s=2.4)
    await world.until_equal()
    await world.server.stop()
    [block] = list(world.store.rglob("*.blk"))
    content = bytearray(block.read_bytes())
    content[content.index(b"n1.0aaaaaaaaaaaaaaa.500") + 60] ^= 1
    block.write_bytes(content)
    if index_lost:
        [index] = list(world.store.rglob("index.db"))
        index.unlink()
    await world.server.start()
    if not index_lost:
        # The broker still counts what it cannot read any more. Without its index it drops everything from there on.
        await world.alarms.until(bool)
        assert world.alarms[0].endswith("event 500 is missing from it")
    await world.until_equal()
    assert await publisher.scrub() == ""


async def test_a_sound_stream_is_scrubbed_without_a_finding(world: World) -> None:
    await world.append(1234)
    publisher = await world.start()
    await world.until_equal()
    assert await publisher.scrub() == ""
    assert world.alarms == []
