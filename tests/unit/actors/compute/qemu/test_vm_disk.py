"""Making a VM's disk, and what is left when that fails: nothing."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from aetherscale.actors.compute.qemu import disk
from aetherscale.actors.compute.qemu.disk import MIB, provision, virtual_size_bytes
from aetherscale.actors.compute.qemu.faults import fault_of
from aetherscale.actors.compute.qemu.layout import RunRecord, VmDirectory, directories
from aetherscale.kernel.fault import Fault

VM = "0123456789abcdef"


def qcow2_header(size_bytes: int) -> bytes:
    return b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(16) + size_bytes.to_bytes(8, "big")


def write_overlay(path: Path, base_format: str, size_bytes: int, base_name: str) -> None:
    path.write_bytes(qcow2_header(size_bytes) + f"{base_format} {base_name}".encode())


def no_room(path: Path, base_format: str, size_bytes: int, base_name: str) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.fixture
def directory(tmp_path: Path) -> VmDirectory:
    return VmDirectory(tmp_path / "vms", VM)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(3 * MIB // 2))
    return path


async def test_a_disk_is_a_link_to_the_image_and_an_overlay_on_it(directory: VmDirectory, image: Path) -> None:
    assert await provision(directory, image, "raw", 64, write_overlay) == 64
    assert (directory.path / "base.img").samefile(image)
    assert (directory.path / "disk.qcow2").read_bytes() == qcow2_header(64 * MIB) + b"raw base.img"
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert (directory.path / "disk.qcow2").stat().st_mode & 0o777 == 0o600


async def test_the_image_can_go_and_the_disk_stays_whole(directory: VmDirectory, image: Path) -> None:
    await provision(directory, image, "raw", 64, write_overlay)
    image.unlink()
    assert await provision(directory, image, "raw", 64, write_overlay) == 64
    assert (directory.path / "base.img").stat().st_size == 3 * MIB // 2


@pytest.mark.parametrize("size_bytes", [None, 3 * MIB // 2])
async def test_an_image_whose_file_is_gone_is_told_as_that(
    directory: VmDirectory, image: Path, size_bytes: int | None
) -> None:
    image.unlink()
    with pytest.raises(Fault, match=r"the image's file .* is missing") as fault:
        await provision(directory, image, "raw", 64, write_overlay, size_bytes)
    assert not fault.value.retryable
    assert not directory.path.exists()


async def test_a_link_that_was_lost_is_made_again(directory: VmDirectory, image: Path) -> None:
    await provision(directory, image, "raw", 64, write_overlay)
    (directory.path / "base.img").unlink()
    assert await provision(directory, image, "raw", 64, write_overlay) == 64
    assert (directory.path / "base.img").samefile(image)


async def test_a_disk_that_is_damaged_is_named_and_kept(directory: VmDirectory, image: Path) -> None:
    await provision(directory, image, "raw", 64, write_overlay)
    (directory.path / "disk.qcow2").write_bytes(b"x" * 1000)
    with pytest.raises(Fault, match="is damaged: it has no qcow2 header") as fault:
        await provision(directory, image, "raw", 64, write_overlay)
    assert not fault.value.retryable
    assert (directory.path / "disk.qcow2").read_bytes() == b"x" * 1000


async def test_a_disk_grows_to_its_image_in_whole_mebibytes(directory: VmDirectory, image: Path) -> None:
    assert await provision(directory, image, "raw", 1, write_overlay) == 2


async def test_the_size_of_a_qcow2_image_is_that_of_its_disk(directory: VmDirectory, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(qcow2_header(5 * MIB))
    assert await provision(directory, image, "qcow2", 1, write_overlay) == 5


async def test_what_was_half_done_before_is_done_again(directory: VmDirectory, image: Path, tmp_path: Path) -> None:
    directory.make()
    other = tmp_path / "other"
    other.write_bytes(b"x")
    os.link(other, directory.path / "base.img")
    (directory.path / ".disk.qcow2").write_bytes(b"half")
    await provision(directory, image, "raw", 64, write_overlay)
    assert (directory.path / "base.img").samefile(image)


@pytest.mark.parametrize("content", [b"", b"QFI", b"x" * 100, qcow2_header(0)])
async def test_a_damaged_image_is_named_and_leaves_nothing(
    directory: VmDirectory, tmp_path: Path, content: bytes
) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(content)
    with pytest.raises(Fault, match=r"image\.qcow2 is not the qcow2 image") as fault:
        await provision(directory, image, "qcow2", 64, write_overlay)
    assert not fault.value.retryable
    assert not directory.exists()


async def test_without_room_nothing_is_begun(
    directory: VmDirectory, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda path: usage(10, MIB))
    with pytest.raises(Fault, match="10 MiB are free, 64 MiB are needed"):
        await provision(directory, image, "raw", 64, write_overlay)
    assert not directory.exists()


async def test_a_disk_that_fills_up_on_the_way_leaves_nothing(directory: VmDirectory, image: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        await provision(directory, image, "raw", 64, no_room)
    assert not directory.exists()
    assert image.exists()


@pytest.mark.parametrize(
    ("number", "hint", "retryable"),
    [(errno.ENOSPC, "df -h", False), (errno.EACCES, "belong to the user", False), (errno.EIO, "", True)],
)
def test_an_error_of_the_system_says_what_was_tried_and_what_to_do(number: int, hint: str, retryable: bool) -> None:
    fault = fault_of("start VM 1", OSError(number, os.strerror(number), "/state/vms"))
    assert fault.reason == f"could not start VM 1: {os.strerror(number)} (/state/vms)"
    assert hint in fault.remedy
    assert fault.retryable == retryable


def test_a_size_is_read_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(qcow2_header(7) + b"whatever")
    assert virtual_size_bytes(path, "qcow2") == 7
    assert disk.ROOM_FOR_DISK_BYTES == 64 * MIB


# --- the directory ---------------------------------------------------------------------------------------------------

RECORD = RunRecord(3, "boot", "tcg", "channel", 4711, 99)


def test_a_record_is_read_as_it_was_written(directory: VmDirectory) -> None:
    directory.make()
    directory.write_record(RECORD)
    assert directory.record() == RECORD
    assert (directory.path / "run.json").stat().st_mode & 0o777 == 0o600
    directory.forget_run()
    assert directory.record() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"run": "x"}', b"\xff", b"[" * 5000, b"x" * 200_000])
def test_a_record_that_is_damaged_is_none(directory: VmDirectory, content: bytes) -> None:
    directory.make()
    (directory.path / "run.json").write_bytes(content)
    assert directory.record() is None


def test_a_symbolic_link_is_no_directory_of_a_vm(directory: VmDirectory, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    directory.path.parent.mkdir()
    directory.path.symlink_to(precious)
    assert not directory.exists()
    directory.remove()
    assert (precious / "file").exists()


def test_only_what_has_the_name_of_a_vm_is_one(directory: VmDirectory) -> None:
    directory.make()
    for name in ("lost+found", "web", VM + "0", "A" * 16):
        (directory.path.parent / name).mkdir()
    (directory.path.parent / "2123456789abcdef").write_text("a file")
    (directory.path.parent / "3123456789abcdef").symlink_to(directory.path)
    assert directories(directory.path.parent) == [VM]


def test_whether_a_vm_lives_is_whether_anybody_holds_its_socket(directory: VmDirectory) -> None:
    directory.make()
    assert not directory.is_held()
    listener = directory.listen("qmp.sock")
    assert directory.is_held()
    listener.close()
    assert not directory.is_held()


def test_sockets_work_in_a_directory_of_any_depth(tmp_path: Path) -> None:
    deep = VmDirectory(tmp_path.joinpath(*["deep" * 10] * 5), VM)
    deep.path.parent.mkdir(parents=True)
    deep.make()
    with deep.listen("qmp.sock") as listener, deep.connect("qmp.sock") as connection:
        accepted, _ = listener.accept()
        connection.sendall(b"x")
        assert accepted.recv(1) == b"x"
        accepted.close()
