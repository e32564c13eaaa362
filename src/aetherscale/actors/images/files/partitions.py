"""The partitions of a disk, by its GPT or MBR, and what each of them holds, by the marks that file systems have."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from aetherscale.actors.images.files.disk import Disk

MOST_PARTITIONS: Final = 128

_SECTOR_BYTES: Final = 512
_HEAD_BYTES: Final = 70 * 1024
# Where, what, and what it is.
_MARKS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (1024 + 56, b"\x53\xef", "ext"),
    (0, b"XFSB", "xfs"),
    (64 * 1024 + 64, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (512, b"LABELONE", "LVM"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (4086, b"SWAPSPACE2", "swap"),
    (54, b"FAT", "vfat"),
    (82, b"FAT32", "vfat"),
    (0, b"hsqs", "squashfs"),
)


class Partition(Struct, frozen=True):
    """A part of a disk: where it is, in bytes, and the kind of what it holds; "" for what is not known."""

    offset_bytes: int
    size_bytes: int
    holds: str


def partitions(disk: Disk) -> list[Partition]:
    """The partitions of a disk, or the whole disk where it has no table of them. Raises `Unreadable`, OSError."""
    head = disk.read(0, 2 * _SECTOR_BYTES)
    found = list(_of_gpt(disk, head) if head[512:520] == b"EFI PART" else _of_mbr(head)) or [(0, disk.size_bytes)]
    return [
        Partition(offset, size, _holds(disk.read(offset, _HEAD_BYTES)))
        for offset, size in found[:MOST_PARTITIONS]
        if 0 <= offset < disk.size_bytes
    ]


def _of_gpt(disk: Disk, head: bytes) -> Iterator[tuple[int, int]]:
    table, count, size = struct.unpack_from("<QII", head, 512 + 72)
    if not 128 <= size <= 4096:
        return
    for number in range(min(count, MOST_PARTITIONS)):
        entry = disk.read(table * _SECTOR_BYTES + number * size, 128)
        if len(entry) == 128 and any(entry[:16]):
            first, last = struct.unpack_from("<QQ", entry, 32)
            if first <= last:
                yield first * _SECTOR_BYTES, (last - first + 1) * _SECTOR_BYTES


def _of_mbr(head: bytes) -> Iterator[tuple[int, int]]:
    if head[510:512] != b"\x55\xaa":
        return
    for number in range(4):
        first, sectors = struct.unpack_from("<II", head, 446 + number * 16 + 8)
        if first and sectors:
            yield first * _SECTOR_BYTES, sectors * _SECTOR_BYTES


def _holds(head: bytes) -> str:
    return next((what for offset, mark, what in _MARKS if head[offset : offset + len(mark)] == mark), "")
