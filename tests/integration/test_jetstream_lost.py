"""A node whose own JetStream is gone as a whole serves on, says so, and has it again once the cause is gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from nats.errors import Error

from tests.integration.conftest import MakeNode
from tests.support.eventually import asked_until
from tests.support.node import PATIENCE_S, RunningNode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

STREAM = "AETHER_EVT_host1"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a file system is mounted")


async def make_image(node: RunningNode, name: str, image: Path) -> None:
    """A command that is accepted, and so makes events; a broker that was just started anew has no node for a moment."""
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1024 * 1024 - 512))
    options = {"source": str(image), "name": name}
    imported = await node.insist("aether.v1.default.cmd.images.import-image", options, f"make-{name}")
    assert imported[-1]["type"] == "result", imported


async def last_stored(node: RunningNode) -> int:
    """Up to which event the copy has all; -1 where there is none now."""
    try:
        client = await node.client()
        answer = await client.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout=2)
    except (Error, OSError):
        return -1
    state: dict[str, Any] = json.loads(answer.data).get("state", {"last_seq": -1, "messages": -1})
    last_seq: int = state["last_seq"]
    return last_seq if last_seq == state["messages"] else -1


async def until_whole(node: RunningNode) -> None:
    _, out, _ = await node.cli("events", "list", "--json")
    head = json.loads(out)[-1]["seq"]

    async def is_whole() -> bool:
        return await last_stored(node) == int(head)

    await asked_until(is_whole, within_s=PATIENCE_S)


async def until_told(node: RunningNode, words: str) -> None:
    async def is_told() -> bool:
        _, out, _ = await node.cli("node", "list", "--json")
        return any(words in trouble for each in json.loads(out) for trouble in each["troubles"])

    await asked_until(is_told, within_s=PATIENCE_S)


@pytest.mark.parametrize("what", ["a file", "a link to nowhere", "account"])
async def test_a_store_that_no_server_starts_with_is_kept_aside(make_node: MakeNode, tmp_path: Path, what: str) -> None:
    node = make_node("--simulated")
    await node.start()
    await make_image(node, "one", tmp_path / "disk.raw")
    await until_whole(node)
    assert await node.stop() == 0
    store = node.state_dir / "nats" / "jetstream"
    if what == "account":
        (store / "jetstream").rename(tmp_path / "was")
        (store / "jetstream").write_text("no directory")
    else:
        store.rename(tmp_path / "was")
        store.write_text("no store") if what == "a file" else store.symlink_to("nowhere/at-all")
    await node.start()
    await until_whole(node)
    aside = store.with_name("jetstream.broken-1")
    assert os.path.lexists(aside)
    assert any(f"it is kept as {aside}" in line for line in node.output)


async def test_jetstream_that_is_turned_off_while_it_runs_is_turned_on_again(
    make_node: MakeNode, tmp_path: Path
) -> None:
    node = make_node("--simulated")
    await node.start()
    await make_image(node, "one", tmp_path / "disk.raw")
    await until_whole(node)
    config = node.state_dir / "nats" / "server.conf"
    without = json.loads(config.read_text())
    without["jetstream"]["enabled"] = False
    del without["accounts"]["AETHER"]["jetstream"]
    config.write_text(json.dumps(without))
    pid = json.loads((node.state_dir / "nats" / "process.json").read_text())["pid"]
    os.kill(pid, signal.SIGHUP)

    async def is_started_anew() -> bool:
        return any("has lost JetStream (it was turned off); starting it anew" in line for line in node.output)

    await asked_until(is_started_anew, within_s=PATIENCE_S)
    await until_whole(node)
    await make_image(node, "two", tmp_path / "disk.raw")
    await until_whole(node)


async def on_a_store_that_is(mounted: str, make_node: MakeNode, tmp_path: Path) -> tuple[RunningNode, Path]:
    """A node with two images, the second made on a store that a script has mounted at "$0"; and where the store is."""
    node = make_node("--simulated")
    await node.start()
    await make_image(node, "one", tmp_path / "disk.raw")
    assert await node.stop() == 0
    store = node.state_dir / "nats" / "jetstream"
    node.within = ("unshare", "--mount", "sh", "-c", mounted, str(store))
    await node.start()
    await make_image(node, "two", tmp_path / "disk.raw")
    return node, store


@as_root
async def test_a_store_that_cannot_be_written_is_told_and_used_once_it_can(make_node: MakeNode, tmp_path: Path) -> None:
    mounted = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'
    node, store = await on_a_store_that_is(mounted, make_node, tmp_path)
    await until_told(
        node, f"{store} cannot be written: Read-only file system; repair that, and JetStream is started again"
    )
    _, out, _ = await node.cli("doctor")
    assert "Read-only file system" in out
    remount = ("nsenter", "-t", str(node.pid), "-m", "mount", "-o", "remount,rw", str(store))
    assert await (await asyncio.create_subprocess_exec(*remount)).wait() == 0
    await until_whole(node)
    await make_image(node, "three", tmp_path / "disk.raw")
    await until_whole(node)


@as_root
async def test_a_store_that_is_full_at_the_start_is_told_and_used_once_it_has_room(
    make_node: MakeNode, tmp_path: Path
) -> None:
    full = 'mount -t tmpfs -o size=64k tmpfs "$0" && { cat /dev/zero > "$0/fill" || :; } && exec "$@"'
    node, store = await on_a_store_that_is(full, make_node, tmp_path)
    await until_told(node, "the copy of the log on JetStream stands still")
    remount = ("nsenter", "-t", str(node.pid), "-m", "mount", "-o", "remount,size=50m", str(store))
    assert await (await asyncio.create_subprocess_exec(*remount)).wait() == 0
    await until_whole(node)
