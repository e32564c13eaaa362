"""Reading the disk in an image, raw or qcow2, within a budget: to look at a few files, whatever the image says.

From QEMU's docs/interop/qcow2.txt. Only what `header.inspect` has taken is read, so nothing of it is elsewhere.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

MOST_READ_BYTES: Final = 64 << 20
"""What is read of one image, at most."""
MOST_READS: Final = 20_000

_CLUSTERS_KEPT: Final = 16
_COMPRESSED: Final = 1 << 62
_OFFSET: Final = 0x00FFFFFFFFFFFE00
_SECTOR_BYTES: Final = 512
_SUBCLUSTERS: Final = 32
_RAW_DEFLATE: Final = -15


class Unreadable(Exception):
    """It cannot be told what is there."""


class Disk:
    """The bytes of the disk in an image. Reading raises `Unreadable`, also where the budget is used up, and OSError."""

    def __init__(self, path: Path, image_format: Literal["qcow2", "raw"]) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self._bytes_left, self._reads_left = MOST_READ_BYTES, MOST_READS
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._is_qcow2 = image_format == "qcow2"
        self.size_bytes = os.fstat(self._file).st_size
        if self._is_qcow2:
            try:
                self._read_header()
            except BaseException:
                os.close(self._file)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; less at the end of the disk."""
        if offset < 0 or length < 0:
            raise Unreadable
        length = max(0, min(length, self.size_bytes - offset))
        if not self._is_qcow2:
            return self._at(offset, length)
        self._spend(length)
        found = bytearray()
        while length > 0:
            inside = offset & (self._cluster_bytes - 1)
            piece = self._cluster(offset - inside)[inside : inside + length]
            found += piece
            offset, length = offset + len(piece), length - len(piece)
        return bytes(found)

    def _at(self, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        self._spend(length)
        return os.pread(self._file, length, offset)

    def _spend(self, length: int) -> None:
        self._bytes_left -= length
        self._reads_left -= 1
        if self._bytes_left < 0 or self._reads_left < 0:
            raise Unreadable

    def _read_header(self) -> None:
        head = self._at(0, 112).ljust(112, b"\0")
        _, version, _, _, bits, size, _, entries, self._l1, *_ = struct.unpack_from(">4sIQIIQIIQ", head)
        features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 else 0
        self._is_zstd = bool(features & 8)
        self._is_extended = bool(features & 16)
        self._cluster_bits, self._cluster_bytes = bits, 1 << bits
        self._entry_bytes = 16 if self._is_extended else 8
        self._l1_entries, self.size_bytes = entries, size

    def _cluster(self, offset: int) -> bytes:
        """The cluster of the disk that begins at an offset."""
        if offset in self._kept:
            self._kept.move_to_end(offset)
            return self._kept[offset]
        found = self._look_up(offset).ljust(self._cluster_bytes, b"\0")
        self._kept[offset] = found
        if len(self._kept) > _CLUSTERS_KEPT:
            self._kept.popitem(last=False)
        return found

    def _look_up(self, offset: int) -> bytes:
        of_table = self._cluster_bytes // self._entry_bytes
        index, inside = divmod(offset >> self._cluster_bits, of_table)
        if index >= self._l1_entries:
            return b""
        table = self._number(self._l1 + index * 8) & _OFFSET
        if not table:
            return b""
        entry = self._number(table + inside * self._entry_bytes)
        if entry & _COMPRESSED:
            return self._unpacked(entry)
        place = entry & _OFFSET
        if self._is_extended:
            return self._subclusters(place, self._number(table + inside * self._entry_bytes + 8))
        return b"" if entry & 1 or not place else self._at(place, self._cluster_bytes)

    def _number(self, offset: int) -> int:
        raw = self._at(offset, 8)
        if len(raw) < 8:
            raise Unreadable
        return int.from_bytes(raw, "big")

    def _unpacked(self, entry: int) -> bytes:
        shift = 62 - (self._cluster_bits - 8)
        place = entry & ((1 << shift) - 1)
        sectors = ((entry & (_COMPRESSED - 1)) >> shift) + 1
        packed = self._at(place, sectors * _SECTOR_BYTES - place % _SECTOR_BYTES)
        try:
            if self._is_zstd:
                from backports import zstd

                return bytes(zstd.ZstdDecompressor().decompress(packed, self._cluster_bytes))
            return zlib.decompressobj(_RAW_DEFLATE).decompress(packed, self._cluster_bytes)
        except Exception as broken:
            raise Unreadable from broken

    def _subclusters(self, place: int, bitmap: int) -> bytes:
        if not place:
            return b""
        found = bytearray(self._at(place, self._cluster_bytes).ljust(self._cluster_bytes, b"\0"))
        size = self._cluster_bytes // _SUBCLUSTERS
        for number in range(_SUBCLUSTERS):
            if not bitmap >> number & 1:
                found[number * size : (number + 1) * size] = bytes(size)
        return bytes(found)
