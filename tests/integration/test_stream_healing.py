"""Whatever an operator, a full disk or another program does to the copy of the log, it is made whole or told."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale.bus import streamconfig
from aetherscale.bus.bus import Incoming
from aetherscale.bus.jetstream import DUPLICATE_WINDOW_NS
from aetherscale.eventstore.memory import MemoryLog
from aetherscale.runtime import publisher as publisher_module
from aetherscale.runtime.publisher import Publisher
from tests.support.eventually import asked_until
from tests.support.nats_server import NatsServer
from tests.support.publishing import EPOCH, NAME, NODE, WAIT_S, World, world

__all__ = ["world"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SUBJECTS = (f"aether.v1.*.evt.{NODE}.>",)
WANTED = streamconfig.wanted(SUBJECTS, 1024**3, DUPLICATE_WINDOW_NS)


async def is_whole(world: World) -> None:
    """The copy is the log, and will be."""
    await world.append(5)
    await world.until_equal()

    async def has_its_settings() -> bool:
        try:
            config = (await world.ask(f"STREAM.INFO.{NAME}"))["config"]
        except AssertionError:
            return False  # it is being made anew
        return not streamconfig.differences(config, WANTED)

    await asked_until(has_its_settings)
    await world.append(5)
    await world.until_equal()


async def no_trouble_is_told(world: World, publisher: Publisher) -> None:
    """Neither now nor while stream and log are compared at the next turns, when nothing is being published."""
    told, head = [publisher.trouble], world.log.head

    async def telling() -> int:
        told.append(publisher.trouble)
        return await head()

    world.log.head = telling  # type: ignore[method-assign]
    await asked_until(lambda: _is(len(told) > 6))
    assert set(told) == {""}


@pytest.mark.parametrize(
    "change",
    [
        {"sealed": True}, {"max_msgs": 5}, {"max_bytes": 2000}, {"max_msg_size": 20}, {"no_ack": True},
        {"max_age": 1_000_000_000}, {"allow_direct": False}, {"subjects": ["others.>"]}, {"subjects": []},
        {"discard": "new", "max_msgs": 105}, {"max_msgs_per_subject": 1}, {"allow_rollup_hdrs": True},
        {"deny_purge": True}, {"subject_transform": {"src": SUBJECTS[0], "dest": "moved.>"}},
    ],
)  # fmt: skip
async def test_a_setting_that_somebody_changed_is_as_it_was(world: World, change: dict[str, Any]) -> None:
    await world.append(100)
    await world.start()
    await world.until_equal()
    config = (await world.ask(f"STREAM.INFO.{NAME}"))["config"]
    await world.ask(f"STREAM.UPDATE.{NAME}", **{**config, **change})
    await is_whole(world)


@pytest.mark.parametrize(
    "config",
    [
        {"retention": "workqueue"}, {"retention": "interest"}, {"storage": "memory"}, {"first_seq": 50},
        {"subjects": [], "sources": [{"name": "OTHER"}]}, {"subjects": [], "mirror": {"name": "OTHER"}},
        {"max_consumers": 1}, {"allow_msg_ttl": True}, {"allow_msg_counter": True, "allow_direct": True},
    ],
)  # fmt: skip
async def test_a_stream_of_its_name_that_somebody_else_made_becomes_the_copy(
    world: World, config: dict[str, Any]
) -> None:
    await world.ask("STREAM.CREATE.OTHER", name="OTHER", subjects=["other.>"])
    for _ in range(3):
        await world.put("other.x", b"theirs")
    made = {"name": NAME, "subjects": list(SUBJECTS), **config}
    await world.ask(f"STREAM.CREATE.{NAME}", **made)
    await world.append(20)
    await world.start()
    await is_whole(world)


async def test_what_was_never_a_nodes_is_kept_under_another_name(world: World) -> None:
    for number in (1, 2):
        await world.ask(f"STREAM.CREATE.{NAME}", name=NAME, subjects=["theirs.>"])
        for _ in range(3):
            await world.put("theirs.x", b"%d" % number)
        await world.append(20)
        await world.start()
        await world.until_equal()
        await world.stop()
        await world.ask(f"STREAM.DELETE.{NAME}")
    names = (await world.ask("STREAM.NAMES"))["streams"]
    aside = [await world.content(name) for name in names if name.startswith(f"{NAME}_foreign_3_")]
    assert sorted([message.body for message in messages] for messages in aside) == [[b"1"] * 3, [b"2"] * 3]


async def test_another_stream_in_the_way_is_named_until_it_is_gone(world: World) -> None:
    await world.ask("STREAM.CREATE.OTHER", name="OTHER", subjects=["aether.v1.>"])
    await world.append(20)
    publisher = await world.start()
    await asked_until(lambda: _is("delete the stream that takes the subjects" in publisher.trouble))
    await world.ask("STREAM.DELETE.OTHER")
    await is_whole(world)
    await no_trouble_is_told(world, publisher)


@pytest.mark.our_mistake
async def test_a_fault_of_our_own_is_a_trouble_until_it_is_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "LAST_RETRY_S", 0.05)
    head = world.log.head

    async def broken() -> int:
        raise RuntimeError("a fault that nobody has thought of")

    world.log.head = broken  # type: ignore[method-assign]
    await world.append(5)
    publisher = await world.start()
    await asked_until(lambda: _is("stands still: an internal error" in publisher.trouble))
    world.log.head = head  # type: ignore[method-assign]
    await is_whole(world)
    await no_trouble_is_told(world, publisher)


async def test_a_broker_without_jetstream_is_a_trouble(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.server = NatsServer(tmp_path / "store", jetstream=False)
    await world.open_log()
    await world.server.start()
    await world.bus.start(WAIT_S)
    publisher = await world.start()
    await asked_until(lambda: _is("this broker has no JetStream" in publisher.trouble))
    await world.stop()
    await world.bus.close()
    await world.server.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted")
async def test_a_store_that_was_full_is_used_again_once_it_has_room(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.mkdir()
    mount = 'mount -t tmpfs -o size=300k tmpfs "$0" && exec "$@"'
    world.server.within = ("unshare", "--mount", "sh", "-c", mount, str(world.store))
    await world.open_log()
    await world.server.start()
    await world.bus.start(WAIT_S)
    publisher = await world.start()
    await world.append(10)
    await world.until_equal()
    await world.append(600, note="x" * 500)
    await asked_until(lambda: _is("stands still" in publisher.trouble))
    stuck_at = (await world.state_at(10)).last_seq
    assert 10 < stuck_at < 610
    pid = str(world.server.pid)
    remount = ("nsenter", "-t", pid, "-m", "mount", "-o", "remount,size=50m", str(world.store))
    assert await (await asyncio.create_subprocess_exec(*remount)).wait() == 0
    await asked_until(lambda: _is(publisher.stored_seq == 610), within_s=60)
    await world.until_equal()
    await no_trouble_is_told(world, publisher)
    assert not [name for name in (await world.ask("STREAM.NAMES"))["streams"] if "PROBE" in name]
    await world.stop()
    await world.bus.close()
    await world.server.kill()


async def test_the_copy_is_left_alone_while_another_node_has_our_name(world: World) -> None:
    await world.append(30)
    await world.start()
    await world.until_equal()
    before = await world.content()
    await world.stop()
    await world.open_log(MemoryLog(NODE, "0bbbbbbbbbbbbbbb"))
    await world.append(20)
    there = "another node of the same name"

    async def rivalry() -> str:
        return there

    publisher = await world.start(rivalry=rivalry)
    await world.alarms.until(bool)
    assert (publisher.halted, "same name" in publisher.trouble) == (there, True)
    assert await world.content() == before
    there = ""
    await world.until_equal()
    assert await world.content(f"{NAME}_{EPOCH}_30") == before
    assert publisher.trouble == ""


async def test_who_hears_the_events_can_forge_no_acknowledgement_for_long(world: World) -> None:
    answers = [b"garbage", b"{}", b"", msgspec.json.encode({"stream": NAME, "seq": 2**40}), b"[" * 9000]
    forged = iter(answers * 4)

    def forge(incoming: Incoming) -> None:
        if incoming.reply and (answer := next(forged, None)) is not None:
            forging.append(asyncio.ensure_future(world.bus.publish(incoming.reply, answer)))
            forging.append(asyncio.ensure_future(world.bus.publish(f"{incoming.reply}x", answer)))

    forging: list[asyncio.Future[None]] = []
    await world.bus.listen(SUBJECTS[0], "", forge)
    await world.start()
    for _ in range(30):
        await world.append(1)
    await world.until_equal()
    await asyncio.gather(*forging)


async def _is(true: bool) -> bool:
    return true
