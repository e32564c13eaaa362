"""The parts of an image that are made here: an archive for the kernel, a disk for a BIOS, modules in their order."""

from __future__ import annotations

import io
import lzma
import struct
import tarfile
from pathlib import Path

import pytest

from aetherscale.actors.images.building import bootdisk, initramfs, kernelmodules

BOOT_SECTOR = b"\x90" * 446 + bytes(range(64)) + b"\x55\xaa"


def unpacked(packed: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and data by path, in the order of the archive. The format is the kernel's: 13 numbers in hexadecimal."""
    found: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        assert packed[offset : offset + 6] == b"070701"
        numbers = [int(packed[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = packed[offset + 110 : offset + 110 + name_size - 1].decode()
        data = offset + -(-(110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            assert data == len(packed)
            return found
        found[name] = (mode, packed[data : data + size])
        offset = data + -(-size // 4) * 4


class TestInitramfs:
    def test_what_was_packed_is_there_with_its_mode(self) -> None:
        packed = initramfs.archive(
            [
                initramfs.regular("etc/rc", b"#!/bin/sh\n", executable=True),
                initramfs.regular("etc/passwd", b"root"),
                initramfs.symlink("bin/sh", "/bin/busybox"),
                initramfs.directory("tmp", 0o1777),
                initramfs.character_device("dev/console", 5, 1),
            ]
        )
        assert unpacked(packed) == {
            "bin": (0o40755, b""),
            "bin/sh": (0o120777, b"/bin/busybox"),
            "dev": (0o40755, b""),
            "dev/console": (0o20600, b""),
            "etc": (0o40755, b""),
            "etc/passwd": (0o100644, b"root"),
            "etc/rc": (0o100755, b"#!/bin/sh\n"),
            "tmp": (0o41777, b""),
        }

    def test_parents_come_before_children_and_a_later_node_wins(self) -> None:
        packed = initramfs.archive(
            [
                initramfs.symlink("sbin/poweroff", "/bin/busybox"),
                initramfs.regular("a.b/c", b""),
                initramfs.regular("a/b", b""),
                initramfs.regular("sbin/poweroff", b"ours"),
            ]
        )
        assert list(unpacked(packed)) == ["a", "a/b", "a.b", "a.b/c", "sbin", "sbin/poweroff"]
        assert unpacked(packed)["sbin/poweroff"] == (0o100644, b"ours")

    def test_the_same_files_are_the_same_bytes_in_any_order(self) -> None:
        nodes = [initramfs.regular(name, name.encode()) for name in ("b", "a/c", "a/b")]
        assert initramfs.archive(nodes) == initramfs.archive(reversed(nodes))


class TestBootDisk:
    def test_a_disk_has_a_boot_sector_a_core_image_and_one_bootable_partition(self) -> None:
        disk = bootdisk.assemble(BOOT_SECTOR, b"core" * 1000, b"kernel", b"initrd")
        assert len(disk) % (1 << 20) == 0
        assert disk[:446] == BOOT_SECTOR[:446]
        assert disk[510:512] == b"\x55\xaa"
        assert disk[512:4512] == b"core" * 1000
        flag, kind, start, sectors = struct.unpack_from("<BxxxBxxxII", disk, 446)
        assert (flag, kind, start, sectors * 512) == (0x80, 0xDA, 2048, len(disk) - (1 << 20))
        assert disk[462:510] == bytes(48)

    def test_the_partition_is_an_archive_with_what_is_booted(self) -> None:
        disk = bootdisk.assemble(BOOT_SECTOR, b"", b"kernel", b"initrd")
        with tarfile.open(fileobj=io.BytesIO(disk[1 << 20 :])) as tar:
            found = {member.name: tar.extractfile(member) for member in tar}
        assert {name: file.read() for name, file in found.items() if file} == {
            "vmlinuz": b"kernel", "initrd.img": b"initrd",
        }  # fmt: skip

    def test_what_is_no_boot_loader_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"boot\.img"):
            bootdisk.assemble(BOOT_SECTOR[:-1], b"", b"", b"")
        with pytest.raises(ValueError, match=r"boot\.img"):
            bootdisk.assemble(bytes(512), b"", b"", b"")
        with pytest.raises(ValueError, match="there is room for 1048064"):
            bootdisk.assemble(BOOT_SECTOR, bytes(2047 * 512 + 1), b"", b"")


class TestKernelModules:
    @staticmethod
    def module(directory: Path, name: str, depends: str, *, compressed: bool = False) -> None:
        data = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"
        path = directory / f"{name}.ko{'.xz' if compressed else ''}"
        path.write_bytes(lzma.compress(data) if compressed else data)

    def test_each_module_comes_after_what_it_depends_on(self, tmp_path: Path) -> None:
        self.module(tmp_path, "virtio", "virtio_ring")
        self.module(tmp_path, "virtio_ring", "")
        self.module(tmp_path, "virtio-net", "virtio,net-failover", compressed=True)
        self.module(tmp_path, "net_failover", "failover")
        self.module(tmp_path, "failover", "")
        self.module(tmp_path, "unwanted", "")
        ordered = kernelmodules.in_load_order(["virtio_net", "virtio"], kernelmodules.find(tmp_path))
        assert list(ordered) == ["virtio_ring", "virtio", "failover", "net_failover", "virtio_net"]
        assert ordered["virtio_net"].startswith(b"\x7fELF")

    def test_a_module_that_is_built_in_is_left_out_and_one_that_is_missing_is_an_error(self, tmp_path: Path) -> None:
        self.module(tmp_path, "a", "missing")
        available = kernelmodules.find(tmp_path)
        assert kernelmodules.in_load_order(["built_in"], available) == {}
        with pytest.raises(KeyError):
            kernelmodules.in_load_order(["a"], available)
