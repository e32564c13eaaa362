"""Reading a few files of an ext2, ext3 or ext4 file system, from the kernel's Documentation/filesystems/ext4.

Only what a look at an image needs: paths with symbolic links, directories, files of a moderate size. What is anything
else (in-line data, encryption, a journal that was not written back) is `Unreadable` or seen as it is on the disk.
Every number comes from a stranger, so each loop is bounded, and so are all reads, by the disk's budget.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import Final

from aetherscale.actors.images.files.disk import Disk, Unreadable
from aetherscale.actors.images.files.partitions import Partition

MOST_FILE_BYTES: Final = 256 * 1024
MOST_DIRECTORY_BYTES: Final = 1 << 20
MOST_LINKS: Final = 16

_ROOT: Final = 2
_MAGIC: Final = 0xEF53
_EXTENT_MAGIC: Final = 0xF30A
_EXTENTS, _INLINE, _ENCRYPTED = 0x80000, 0x10000000, 0x800
_64_BIT, _META_GROUPS = 0x80, 0x10
_MOST_DEPTH: Final = 5
_MOST_EXTENTS: Final = 4096
_DIRECT: Final = 12


class Inode:
    """A file, a directory or a symbolic link."""

    def __init__(self, raw: bytes) -> None:
        self.mode: int
        self.mode, low = struct.unpack_from("<HxxI", raw)
        (self.flags,) = struct.unpack_from("<I", raw, 32)
        self.blocks = raw[40:100]
        (high,) = struct.unpack_from("<I", raw, 108)
        self.size_bytes = low | high << 32
        if self.flags & (_INLINE | _ENCRYPTED):
            raise Unreadable


class Ext:
    """A file system on a partition of a disk. Everything raises `Unreadable` and OSError."""

    def __init__(self, disk: Disk, partition: Partition) -> None:
        self._disk, self._start = disk, partition.offset_bytes
        head = disk.read(self._start + 1024, 1024)
        if len(head) < 1024 or struct.unpack_from("<H", head, 56)[0] != _MAGIC:
            raise Unreadable
        first, log_size = struct.unpack_from("<II", head, 20)
        (self._inodes_of_group,) = struct.unpack_from("<I", head, 40)
        (revision,) = struct.unpack_from("<I", head, 76)
        (inode_bytes,) = struct.unpack_from("<H", head, 88)
        (incompatible,) = struct.unpack_from("<I", head, 96)
        (descriptor_bytes,) = struct.unpack_from("<H", head, 254)
        self._inode_bytes = inode_bytes if revision else 128
        self._descriptor_bytes = descriptor_bytes if incompatible & _64_BIT else 32
        if log_size > 6 or incompatible & _META_GROUPS or not self._inodes_of_group:
            raise Unreadable
        if not (128 <= self._inode_bytes <= 4096 and 32 <= self._descriptor_bytes <= 1024):
            raise Unreadable
        self._block_bytes = 1024 << log_size
        self._descriptors = (first + 1) * self._block_bytes

    def text(self, path: str) -> str | None:
        """The beginning of a text file; None where there is none of that name."""
        inode = self._find(path)
        if inode is None or not stat.S_ISREG(inode.mode):
            return None
        return self._content(inode, MOST_FILE_BYTES).decode("utf-8", "replace")

    def exists(self, path: str) -> bool:
        """Whether there is something of that name, which a symbolic link leads to or not."""
        return self._find(path) is not None

    def names(self, path: str) -> list[str]:
        """The names in a directory; none where there is no such directory."""
        inode = self._find(path)
        if inode is None or not stat.S_ISDIR(inode.mode):
            return []
        return [name for name, _ in self._entries(inode)]

    def _find(self, path: str) -> Inode | None:
        here, parents = self._inode(_ROOT), [_ROOT]
        parts, links = path.strip("/").split("/"), 0
        while parts:
            part = parts.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                parents = parents[:-1] or [_ROOT]
                here = self._inode(parents[-1])
                continue
            if not stat.S_ISDIR(here.mode):
                return None
            number = next((inode for name, inode in self._entries(here) if name == part), None)
            if number is None:
                return None
            found = self._inode(number)
            if stat.S_ISLNK(found.mode):
                links += 1
                if links > MOST_LINKS:
                    raise Unreadable
                target = self._target(found)
                if target.startswith("/"):
                    parents, here = [_ROOT], self._inode(_ROOT)
                parts = [*target.split("/"), *parts]
                continue
            here = found
            parents.append(number)
        return here

    def _target(self, link: Inode) -> str:
        short = link.size_bytes < len(link.blocks)
        raw = link.blocks[: link.size_bytes] if short else self._content(link, 4096)
        return raw.decode("utf-8", "replace")

    def _inode(self, number: int) -> Inode:
        group, index = divmod(number - 1, self._inodes_of_group)
        descriptor = self._read(self._descriptors + group * self._descriptor_bytes, self._descriptor_bytes)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._descriptor_bytes >= 64:
            table |= struct.unpack_from("<I", descriptor, 40)[0] << 32
        return Inode(self._read(table * self._block_bytes + index * self._inode_bytes, 128))

    def _entries(self, directory: Inode) -> Iterator[tuple[str, int]]:
        content = self._content(directory, MOST_DIRECTORY_BYTES)
        at = 0
        while at + 8 <= len(content):
            inode, length, name_length = struct.unpack_from("<IHB", content, at)
            if length < 12:
                raise Unreadable
            if inode:
                yield content[at + 8 : at + 8 + name_length].decode("utf-8", "replace"), inode
            at += length

    def _content(self, inode: Inode, most_bytes: int) -> bytes:
        size = min(inode.size_bytes, most_bytes)
        count = -(-size // self._block_bytes)
        found = bytearray(count * self._block_bytes)
        blocks = self._extents(inode.blocks, 0) if inode.flags & _EXTENTS else self._mapped(inode.blocks, count)
        for number, (logical, physical, length) in enumerate(blocks):
            if number > _MOST_EXTENTS:
                raise Unreadable
            length = min(length, count - logical)
            if length > 0:
                raw = self._read(physical * self._block_bytes, length * self._block_bytes)
                found[logical * self._block_bytes : logical * self._block_bytes + len(raw)] = raw
        return bytes(found[:size])

    def _extents(self, node: bytes, depth: int) -> Iterator[tuple[int, int, int]]:
        magic, entries, _, levels = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or depth > _MOST_DEPTH or 12 + entries * 12 > len(node):
            raise Unreadable
        for number in range(entries):
            at = 12 + number * 12
            if levels:
                _, low, high = struct.unpack_from("<IIH", node, at)
                below = self._read((low | high << 32) * self._block_bytes, self._block_bytes)
                yield from self._extents(below, depth + 1)
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", node, at)
                if length <= 32768:  # a longer one is reserved and reads as zeros
                    yield logical, low | high << 32, length

    def _mapped(self, blocks: bytes, count: int) -> Iterator[tuple[int, int, int]]:
        """The blocks of a file of ext2: direct ones, and those that one block of numbers names."""
        numbers = list(struct.unpack("<15I", blocks))
        known = numbers[:_DIRECT]
        if count > _DIRECT and numbers[_DIRECT]:
            raw = self._read(numbers[_DIRECT] * self._block_bytes, self._block_bytes)
            known += struct.unpack(f"<{len(raw) // 4}I", raw)
        if count > len(known):
            raise Unreadable
        yield from ((logical, physical, 1) for logical, physical in enumerate(known[:count]) if physical)

    def _read(self, offset: int, length: int) -> bytes:
        raw = self._disk.read(self._start + offset, length)
        if len(raw) < length:
            raise Unreadable
        return raw
