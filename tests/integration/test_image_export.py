"""Images out of a node: whole qcow2 files under their names, or nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.images import exporting
from aetherscale.actors.images.building.programs import search_path
from aetherscale.actors.images.exporting import Exports
from aetherscale.actors.images.files.header import inspect
from aetherscale.actors.images.store import Store
from aetherscale.kernel.fault import Fault
from tests.support import looked_into
from tests.support.cli import good, told
from tests.support.image_imports import DISK, node
from tests.support.node import RunningNode

__all__ = ["node"]

pytestmark = pytest.mark.integration


async def imported(node: RunningNode, place: Path, *, qcow2: bool = False) -> Path:
    source = place / "web.raw"
    source.write_bytes(DISK)
    if qcow2:
        source = looked_into.as_qcow2(source)
    await good(node, "image", "import", str(source), "--name", "web", "--label", "env=test")
    return source


async def test_a_raw_image_comes_out_as_qcow2_and_goes_in_again(node: RunningNode, tmp_path: Path) -> None:
    await imported(node, tmp_path)
    target = tmp_path / "out.qcow2"
    await good(node, "image", "export", "web", str(target))
    assert inspect(target).format == "qcow2"
    looked_into._run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(target), str(tmp_path / "again.raw"))
    assert (tmp_path / "again.raw").read_bytes() == DISK
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["again.raw", "out.qcow2", "web.raw"]


async def test_a_qcow2_image_comes_out_as_it_is_also_to_stdout(node: RunningNode, tmp_path: Path) -> None:
    source = await imported(node, tmp_path, qcow2=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aetherscale", "image", "export", "web", "-"),
        stdout=asyncio.subprocess.PIPE,
        env=node.environment,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert said == source.read_bytes()


async def test_what_is_there_is_replaced_only_by_force(node: RunningNode, tmp_path: Path) -> None:
    source = await imported(node, tmp_path, qcow2=True)
    target = tmp_path / "mine"
    target.write_text("mine")
    status, _, err = await node.cli("image", "export", "web", str(target))
    assert (status, target.read_text()) == (1, "mine")
    assert "is there already" in err
    target.unlink()
    target.symlink_to("/nowhere")
    status, _, _ = await node.cli("image", "export", "web", str(target))
    assert (status, os.readlink(target)) == (1, "/nowhere")
    await good(node, "image", "export", "web", str(target), "--force")
    assert not target.is_symlink()
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


async def test_what_is_no_file_is_not_replaced_whatever_is_asked_for(node: RunningNode, tmp_path: Path) -> None:
    await imported(node, tmp_path)
    device = tmp_path / "null"
    os.mkfifo(device)
    for force in ((), ("--force",)):
        status, _, err = await node.cli("image", "export", "web", str(device), *force)
        assert (status, "is no regular file, and is not replaced" in err) == (1, True), err
        status, _, err = await node.cli("image", "export", "web", str(tmp_path), *force)
        assert (status, f"name a file in it: {tmp_path}/web.qcow2" in err) == (1, True), err
    assert device.is_fifo()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_an_export_that_is_killed_leaves_nothing(node: RunningNode, tmp_path: Path, number: int) -> None:
    big = tmp_path / "big.raw"
    big.write_bytes(DISK[:512] + os.urandom(48 << 20))
    await good(node, "image", "import", str(big), "--name", "big")
    place = tmp_path / "place"
    place.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aetherscale", "image", "export", "big", str(place / "out.qcow2")),
        stderr=asyncio.subprocess.PIPE,
        env=node.environment,
    )
    assert process.stderr is not None
    while b"exporting" not in (line := await process.stderr.readline()):
        assert line, "it was done before it was killed"
    process.send_signal(number)
    await process.communicate()
    assert process.returncode != 0
    assert list(place.iterdir()) == []


async def test_an_image_that_is_not_ready_is_not_exported_nor_one_that_changed(
    node: RunningNode, tmp_path: Path
) -> None:
    await imported(node, tmp_path)
    status, _, err = await node.cli("image", "export", "nothing", str(tmp_path / "o"))
    assert (status, (tmp_path / "o").exists()) == (3, False), err
    options = {"image": "web", "sha256": "0" * 64, "offset": 0}
    refused = (await node.request("aether.v1.default.cmd.images.read-image", options))[-1]
    assert (refused["code"], "has been updated since" in refused["message"]) == (409, True)


@pytest.mark.skipif(shutil.which("mke2fs", path=search_path()) is None, reason="e2fsprogs is not installed")
async def test_inspect_shows_an_image_of_the_node_and_a_file_without_one(node: RunningNode, tmp_path: Path) -> None:
    image = looked_into.disk(tmp_path / "made", looked_into.SYSTEM)
    await good(node, "image", "import", str(image), "--name", "web")
    shown: Any = await told(node, "image", "inspect", "web")
    assert (shown["os-id"], shown["agent"], shown["name"]) == ("debian 12", "yes", "web")
    assert (shown["first-boot"], shown["could-take"], shown["unread"]) == ("none", "cloud-init", None)
    await node.stop()
    shown = await told(node, "image", "inspect", str(image))
    assert (shown["os-id"], shown["refused"]) == ("debian 12", None)


async def test_inspect_shows_what_the_node_knows_where_the_image_tells_nothing(
    node: RunningNode, tmp_path: Path
) -> None:
    (tmp_path / "bare.raw").write_bytes(DISK)
    await good(node, "image", "import", str(tmp_path / "bare.raw"), "--ready", "channel", "--first-boot", "tiny")
    shown: Any = await told(node, "image", "inspect", "bare")
    assert (shown["ready"], shown["first-boot"], shown["could-take"]) == ("channel", "tiny", "unknown")
    assert (shown["format"], shown["virtual-size-bytes"]) == ("raw", len(DISK))
    assert shown["sha256"] == hashlib.sha256(DISK).hexdigest()
    assert shown["source"].endswith("/bare.raw")
    status, out, err = await node.cli("image", "inspect", "bare")
    assert status == 0, err
    assert "first-boot" in out
    assert "unknown" not in out
    assert "what is not shown cannot be told without running it: its system is read from ext2" in err


async def test_labels_are_shown_and_lists_are_filtered_by_them(node: RunningNode, tmp_path: Path) -> None:
    await imported(node, tmp_path)
    listed: Any = await told(node, "image", "list", "--label", "env=test")
    assert [image["labels"] for image in listed] == [{"env": "test"}]
    assert await told(node, "image", "list", "--label", "env=other") == []
    refused = await node.cli("image", "import", str(tmp_path / "web.raw"), "--name", "x", "--label", "a b=c")
    assert refused[0] == 2


async def test_two_imports_of_one_content_are_one_file(node: RunningNode, tmp_path: Path) -> None:
    source = await imported(node, tmp_path)
    await good(node, "image", "import", str(source), "--name", "again")
    images = node.state_dir / "images"
    content = images / "content" / f"{hashlib.sha256(DISK).hexdigest()}.raw"
    assert content.stat().st_nlink == 3
    assert len({path.stat().st_ino for path in images.rglob("*.raw")}) == 1
    await good(node, "image", "delete", "web")
    assert content.stat().st_nlink == 2
    await good(node, "image", "delete", "again")
    assert not content.exists()


def exports(place: Path) -> tuple[Exports, Path]:
    images = place / "images"
    images.mkdir(mode=0o700)
    (images / "i.raw").write_bytes(DISK)
    return Exports(Store(images), place / "cache"), place / "cache/exports"


async def test_what_was_converted_is_kept_for_an_hour(tmp_path: Path) -> None:
    ours, kept = exports(tmp_path)
    await ours.prepare("i", "raw", "a" * 64, 1000.0, quiet)
    made = (kept / f"{'a' * 64}.qcow2").stat().st_ino
    await ours.prepare("i", "raw", "a" * 64, 1000.0 + exporting.KEPT_S, quiet)
    assert (kept / f"{'a' * 64}.qcow2").stat().st_ino == made
    await ours.prepare("i", "raw", "b" * 64, 1001.0 + 2 * exporting.KEPT_S, quiet)
    assert [path.name for path in kept.iterdir()] == [f"{'b' * 64}.qcow2"]


async def test_a_conversion_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "qemu-img").write_text('#!/bin/sh\ntouch "$7"; exec sleep 1000\n')
    (slow / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    monkeypatch.setattr(exporting, "CONVERT_TIMEOUT_S", 0.2)
    ours, kept = exports(tmp_path)
    with pytest.raises(Fault, match="was not done in 0 s"):
        await ours.prepare("i", "raw", "a" * 64, 1000.0, quiet)
    assert list(kept.iterdir()) == []


def quiet(step: str, **fields: Any) -> None:
    """What nobody wants to hear."""
