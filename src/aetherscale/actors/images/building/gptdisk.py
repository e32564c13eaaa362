"""A disk that BIOS and UEFI boot: where its parts lie, and how GRUB finds the next one.

        0        1 MiB         2 MiB                        64 MiB
        ┌────────┬─────────────┬───────────────────────────┬──────────────────────────────┬─────┐
        │ boot.img│ core.img    │ FAT with                  │ ext4: the root file system   │ GPT │
        │ and GPT│ (BIOS boot) │ EFI/BOOT/BOOTX64.EFI (ESP)│ with /boot/boot.cfg          │     │
        └────────┴─────────────┴───────────────────────────┴──────────────────────────────┴─────┘

Both GRUBs look for the root file system by its UUID, and run `boot.cfg` there. boot.img is told the first sector of
core.img, and core.img that of its own second sector (GRUB manual, "BIOS installation"). Pure.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from aetherscale.actors.images.building.guestfiles import BOOT_CONFIGURATION

SECTOR_BYTES: Final = 512
MIB: Final = 1 << 20
BIOS_BOOT_OFFSET: Final = 1 * MIB
BIOS_BOOT_BYTES: Final = 1 * MIB
ESP_OFFSET: Final = 2 * MIB
ESP_BYTES: Final = 48 * MIB
"""FAT32 has at least 65,525 clusters, here of one sector each."""
ROOT_OFFSET: Final = 64 * MIB
BACKUP_BYTES: Final = 1 * MIB
"""The second copy of the partition table is at the end."""

_MODULES: Final = ("part_gpt", "ext2", "search_fs_uuid", "normal", "configfile", "test", "linux", "boot", "echo")
BIOS_MODULES: Final = ("biosdisk", "linux16", "serial", "terminal", *_MODULES)
UEFI_MODULES: Final = (*_MODULES, "efi_gop")

_BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
"""Root of x86-64 in the Discoverable Partitions Specification: systemd-repart knows it by that."""
_BOOT_IMAGE_CODE_BYTES = 440
_CORE_SECTOR_AT = 0x5C
_NEXT_SECTOR_AT = SECTOR_BYTES - 12
_SIGNATURE = b"\x55\xaa"


def identity(key: str, part: str) -> str:
    """The UUID of a part of the disk that is made from `key`."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:aetherscale:image:{key}:{part}"))


def disk_bytes(root_bytes: int) -> int:
    """How large a disk with such a root file system is."""
    return ROOT_OFFSET + root_bytes + BACKUP_BYTES


def partitions(key: str, root_bytes: int) -> bytes:
    """The partition table, as sfdisk(8) reads it."""
    parts = (
        ("bios", BIOS_BOOT_OFFSET, BIOS_BOOT_BYTES, _BIOS_BOOT_TYPE),
        ("esp", ESP_OFFSET, ESP_BYTES, _ESP_TYPE),
        ("root", ROOT_OFFSET, root_bytes, _ROOT_TYPE),
    )
    lines = [f"label: gpt\nlabel-id: {identity(key, 'disk')}\nunit: sectors\n"]
    for name, offset, size, kind in parts:
        where = f"start={offset // SECTOR_BYTES}, size={size // SECTOR_BYTES}"
        lines.append(f'{where}, type={kind}, uuid={identity(key, f"partition-{name}")}, name="{name}"')
    return "\n".join(lines).encode() + b"\n"


def loader_commands(root_uuid: str, *, bios: bool) -> str:
    """What the GRUB of either firmware runs first."""
    console = "serial --unit=0 --speed=115200\nterminal_output console serial\n" if bios else ""
    return (
        f"{console}search.fs_uuid {root_uuid} root\n"
        f"set prefix=($root)/boot\n"
        f"configfile ($root)/{BOOT_CONFIGURATION}\n"
    )  # fmt: skip


def with_loader(boot_image: bytes, core_image: bytes) -> tuple[bytes, bytes]:
    """The code of sector 0, and core.img, each knowing where the next part begins.

    Raises ValueError where they are not what they should be: a damaged package, or a GRUB that has grown.
    """
    if len(boot_image) != SECTOR_BYTES or not boot_image.endswith(_SIGNATURE):
        raise ValueError(f"boot.img is not a boot sector of {SECTOR_BYTES} bytes ({len(boot_image)} bytes)")
    if not SECTOR_BYTES < len(core_image) <= BIOS_BOOT_BYTES:
        raise ValueError(f"core.img has {len(core_image)} bytes, and there is room for {BIOS_BOOT_BYTES}")
    first = BIOS_BOOT_OFFSET // SECTOR_BYTES
    sector, core = bytearray(boot_image[:_BOOT_IMAGE_CODE_BYTES]), bytearray(core_image)
    struct.pack_into("<Q", sector, _CORE_SECTOR_AT, first)
    struct.pack_into("<Q", core, _NEXT_SECTOR_AT, first + 1)
    return bytes(sector), bytes(core)
