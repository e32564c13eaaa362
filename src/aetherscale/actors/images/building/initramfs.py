"""An initial RAM file system: files in memory in, one cpio archive out, the same bytes for the same files.

Knows the archive format of the kernel (Documentation/driver-api/early-userspace/buffer-format.rst, `newc`) and nothing
of what the files are for. Everything belongs to root, and no file has a date.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import PurePosixPath

from msgspec import Struct

_END_OF_ARCHIVE = "TRAILER!!!"


class Node(Struct, frozen=True):
    """One name in the archive: `path` is relative to the root, `mode` has the type bits, `device` is (major, minor)."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def regular(path: str, data: bytes, *, executable: bool = False) -> Node:
    """A file that everybody may read."""
    return Node(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(path: str, target: str) -> Node:
    """A symbolic link to `target`."""
    return Node(path, stat.S_IFLNK | 0o777, target.encode())


def directory(path: str, permissions: int = 0o755) -> Node:
    """A directory. Only empty ones need to be named: parents are made by `archive`."""
    return Node(path, stat.S_IFDIR | permissions)


def character_device(path: str, major: int, minor: int) -> Node:
    """A character device that only root may use."""
    return Node(path, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(nodes: Iterable[Node]) -> bytes:
    """The cpio archive of `nodes`, in the order of their paths, parents before children. A later node wins its path."""
    by_path = {node.path: node for node in nodes}
    for path in list(by_path):
        for parent in PurePosixPath(path).parents:
            if parent.name:
                by_path.setdefault(str(parent), directory(str(parent)))
    packed = bytearray()
    for inode, path in enumerate(sorted(by_path, key=lambda path: PurePosixPath(path).parts), start=1):
        _append(packed, inode, by_path[path])
    _append(packed, 0, Node(_END_OF_ARCHIVE, 0))
    return bytes(packed)


def _append(packed: bytearray, inode: int, node: Node) -> None:
    """Add one record: a header of thirteen numbers in hexadecimal, the name, the data, each padded to four bytes."""
    name = node.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    numbers = (inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name), 0)
    packed += b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    packed += bytes(-len(packed) % 4)
    packed += node.data
    packed += bytes(-len(packed) % 4)
