"""A disk that a BIOS boots: GRUB's own boot sector and core image, and a kernel with its initial RAM file system.

        sector 0          1 …                   2048 …
        ┌───────────────┬─────────────────────┬──────────────────────────────────────────┐
        │ boot.img, and │ core.img: GRUB with │ partition 1: a plain tar archive with    │
        │ the partition │ its modules and the │ vmlinuz and initrd.img, which GRUB reads │
        │ table         │ commands to run     │ as a file system                         │
        └───────────────┴─────────────────────┴──────────────────────────────────────────┘

A tar archive needs no tool, no mount and no loop device to make, and `tar tf` shows what is in it. boot.img looks for
core.img at sector 1 unless told otherwise, and core.img knows its own length (GRUB manual, "BIOS installation").
The bytes depend on nothing but the arguments.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Mapping

SECTOR_BYTES = 512
FIRST_PARTITION_SECTOR = 2048
GRUB_MODULES = ("biosdisk", "part_msdos", "tar", "linux16", "boot")
"""The modules that the core image needs to read such a disk, in the order in which GRUB loads them."""

_PARTITION_TABLE_OFFSET = 446
_BOOTABLE = 0x80
_TYPE_NO_FILE_SYSTEM = 0xDA
_CYLINDER_HEAD_SECTOR_UNUSED = b"\xfe\xff\xff"
_SIGNATURE = b"\x55\xaa"
_GRANULE_BYTES = 1 << 20


def boot_commands(kernel_command_line: str) -> str:
    """The script that GRUB runs: load and boot at once, with no menu and no waiting.

    `linux16` and not `linux`: the latter moves the whole memory that the kernel will unpack into, byte by byte, which
    takes three seconds on an emulated processor.
    """
    return (
        f"linux16 (hd0,msdos1)/vmlinuz {kernel_command_line}\n"
        "initrd16 (hd0,msdos1)/initrd.img\n"
        "boot\n"
    )  # fmt: skip


def assemble(boot_image: bytes, core_image: bytes, kernel: bytes, initial_ram_fs: bytes) -> bytes:
    """The whole disk, a multiple of 1 MiB, from GRUB's `boot.img`, a `core.img` of `GRUB_MODULES`, and what they load.

    Raises ValueError where the parts are not what they should be: a damaged package, or a GRUB that has grown.
    """
    if len(boot_image) != SECTOR_BYTES or not boot_image.endswith(_SIGNATURE):
        raise ValueError(f"boot.img is not a boot sector of {SECTOR_BYTES} bytes ({len(boot_image)} bytes)")
    room = (FIRST_PARTITION_SECTOR - 1) * SECTOR_BYTES
    if len(core_image) > room:
        raise ValueError(f"core.img has {len(core_image)} bytes, and there is room for {room}")
    partition = _tar({"vmlinuz": kernel, "initrd.img": initial_ram_fs})
    partition += bytes(-len(partition) % _GRANULE_BYTES)
    entry = struct.pack(
        "<B3sB3sII",
        _BOOTABLE,
        _CYLINDER_HEAD_SECTOR_UNUSED,
        _TYPE_NO_FILE_SYSTEM,
        _CYLINDER_HEAD_SECTOR_UNUSED,
        FIRST_PARTITION_SECTOR,
        len(partition) // SECTOR_BYTES,
    )
    head = boot_image[:_PARTITION_TABLE_OFFSET] + entry.ljust(64, b"\0") + _SIGNATURE + core_image
    return head.ljust(FIRST_PARTITION_SECTOR * SECTOR_BYTES, b"\0") + partition


def _tar(files: Mapping[str, bytes]) -> bytes:
    """A tar archive of `files`, owned by root, without dates."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()
