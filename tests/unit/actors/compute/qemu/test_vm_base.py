"""A VM's base where the file system gives the image's file no second name, and where it does."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aetherscale import filecopy
from aetherscale.actors.compute.qemu import base
from aetherscale.actors.compute.qemu.disk import MIB, provision
from aetherscale.actors.compute.qemu.faults import fault_of
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.kernel.fault import Fault
from tests.unit.actors.compute.qemu.test_vm_disk import VM, write_overlay

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        file.write(CONTENT)
        file.truncate(64 * MIB)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than the image's."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        if Path(directory).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm and the temporary directory are on one file system")
        yield Path(directory)


def refusing(number: int) -> Callable[[Path, Path], None]:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    return link


async def test_across_file_systems_the_base_is_a_copy_with_its_holes(image: Path, elsewhere: Path) -> None:
    directory = VmDirectory(elsewhere / "vms", VM)
    assert await provision(directory, image, "raw", 128, write_overlay) == 128
    copy = directory.path / "base.img"
    assert copy.read_bytes() == image.read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.stat().st_blocks * 512 < 2 * len(CONTENT)
    image.unlink()
    assert await provision(directory, image, "raw", 128, write_overlay) == 128
    assert sorted(each.name for each in directory.path.iterdir()) == ["base.img", "disk.qcow2"]


@pytest.mark.parametrize("number", sorted(base.NO_LINK))
async def test_whatever_keeps_a_link_from_being_made_the_base_is_there(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", refusing(number))
    await base.ensure(image, tmp_path / "base.img")
    assert (tmp_path / "base.img").read_bytes() == image.read_bytes()
    assert not (tmp_path / "base.img").samefile(image)


async def test_no_copy_is_made_for_what_a_copy_does_not_mend(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        await base.ensure(image, tmp_path / "base.img")
    assert not (tmp_path / "base.img").exists()


async def test_a_copy_that_nobody_waits_for_ends_and_leaves_nothing(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def copy(original: int, target: int, advance: filecopy.Advance) -> int:
        loop.call_soon_threadsafe(begun.set)
        try:
            while True:
                advance(0, 1)
        finally:
            ended.set()

    monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    monkeypatch.setattr(filecopy, "copy", copy)
    copying = asyncio.ensure_future(base.ensure(image, tmp_path / "base.img"))
    await begun.wait()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert ended.is_set(), "it was waited for"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["image.raw"]


async def test_a_vm_whose_disk_is_cancelled_while_its_base_is_copied_has_nothing_left(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def copy(original: int, target: int, advance: filecopy.Advance) -> int:
        loop.call_soon_threadsafe(begun.set)
        while True:
            advance(0, 1)

    directory = VmDirectory(tmp_path / "vms", VM)
    with monkeypatch.context() as slowed:
        slowed.setattr(os, "link", refusing(errno.EXDEV))
        slowed.setattr(filecopy, "copy", copy)
        making = asyncio.ensure_future(provision(directory, image, "raw", 64, write_overlay))
        await begun.wait()
        assert directory.path.exists()
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
    assert not directory.path.exists()
    assert await provision(directory, image, "raw", 64, write_overlay) == 64


async def test_what_an_earlier_copy_has_left_is_no_hindrance(image: Path, elsewhere: Path) -> None:
    directory = VmDirectory(elsewhere / "vms", VM)
    directory.make()
    (directory.path / ".base.img").write_bytes(b"half")
    (directory.path / "base.img").write_bytes(b"of another image")
    await provision(directory, image, "raw", 64, write_overlay)
    assert (directory.path / "base.img").read_bytes() == image.read_bytes()


async def test_no_room_for_a_copy_is_told_with_what_it_takes(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(original: int, target: int, advance: filecopy.Advance) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    monkeypatch.setattr(filecopy, "copy", full)
    directory = VmDirectory(tmp_path / "vms", VM)
    with pytest.raises(Fault, match=r"no room for a copy of the image in .*/vms: it takes 1 MiB") as fault:
        await provision(directory, image, "raw", 64, write_overlay)
    assert not fault.value.retryable
    assert "images/ and vms/ on one file system" in fault.value.remedy
    assert not directory.exists()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EFBIG, "ulimit -f"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.ENOMEM, "ulimit -v"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_a_limit_of_the_node_is_named_with_what_raises_it(number: int, hint: str) -> None:
    assert hint in fault_of("start VM 1", OSError(number, os.strerror(number))).remedy
