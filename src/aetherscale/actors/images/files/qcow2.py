"""The header and the tables of a qcow2 image: checked where it comes from elsewhere, written for an empty overlay.

From QEMU's docs/interop/qcow2.txt. All numbers are big-endian. Knows nothing of what is done with an image.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
from array import array
from pathlib import Path
from typing import Final

from aetherscale.actors.images.files.rejected import ImageRejected

MAGIC: Final = b"QFI\xfb"

# Magic to snapshots_offset, in every version; then what version 3 added, up to header_length.
_COMMON: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_ADDED: Final = struct.Struct(">QQQII")
_VERSION_2_BYTES: Final = _COMMON.size
_VERSION_3_BYTES: Final = _COMMON.size + _ADDED.size
_EXTENSION: Final = struct.Struct(">II")

# Incompatible features, by their bits.
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _SUBCLUSTERS = 1, 2, 4, 8, 16
_KNOWN_FEATURES: Final = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _SUBCLUSTERS

_BITMAPS, _RAW_DATA_FILE = 1, 2
"""Autoclear features, by their bits. A program that does not know one may ignore it."""

_END_OF_EXTENSIONS: Final = 0
_BACKING_FORMAT: Final = 0xE2792ACA
_BITMAPS_EXTENSION: Final = 0x23852875
_BITMAPS_BYTES: Final = 24
_MOST_BACKING_FORMAT_BYTES: Final = 15
_REFUSED_EXTENSIONS: Final = {
    0x44415441: "its data are in another file",
    0x0537BE77: "it is encrypted",
}

# QEMU's own limits (block/qcow2.h).
_CLUSTER_BITS: Final = range(9, 22)
_MOST_L1_BYTES: Final = 32 << 20
_MOST_REFCOUNT_TABLE_BYTES: Final = 8 << 20
_MOST_REFCOUNT_ORDER: Final = 6
_MOST_BLOCKS_LOOKED_AT: Final = 16
_MOST_OFFSET: Final = (1 << 63) - 1
_OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00

_FLATTEN: Final = "make a flat copy: qemu-img convert -O qcow2 OLD NEW.qcow2"
_AGAIN: Final = "get it again, and give its checksum: --sha256"


def check(file: int, file_size: int) -> int:
    """The size in bytes of the disk that an image, open as the descriptor `file`, stands for.

    Raises ImageRejected unless it is one that is taken.
    """
    head = os.pread(file, _VERSION_3_BYTES + 8, 0)
    if len(head) < _VERSION_2_BYTES:
        raise ImageRejected(f"its header is cut off after {len(head)} bytes", _AGAIN)
    (
        _, version, backing_offset, _, cluster_bits, virtual_size, encryption, l1_entries, l1_offset, refcount_offset,
        refcount_clusters, snapshots, snapshots_offset,
    ) = _COMMON.unpack_from(head)  # fmt: skip
    if version not in (2, 3):
        raise ImageRejected(f"it is qcow version {version}; only versions 2 and 3 are supported", _FLATTEN)
    if backing_offset:
        raise ImageRejected("it has a backing file: it is only the difference to another image", _FLATTEN)
    if cluster_bits not in _CLUSTER_BITS:
        raise ImageRejected(f"its cluster_bits are {cluster_bits}, and 9 to 21 are possible", _AGAIN)
    if encryption:
        raise ImageRejected("it is encrypted", "import an image that is not encrypted")
    if snapshots:
        raise ImageRejected(f"it contains internal snapshots ({snapshots})", _FLATTEN)
    if snapshots_offset % (1 << cluster_bits) or snapshots_offset > _MOST_OFFSET:
        raise ImageRejected(f"its table of snapshots, which is empty, is at {snapshots_offset}", _FLATTEN)
    if virtual_size == 0 or virtual_size % 512:
        raise ImageRejected(f"its disk has {virtual_size} bytes, which is not a multiple of 512", _FLATTEN)
    features, refcount_order, header_bytes = 0, 4, _VERSION_2_BYTES
    if version == 3:
        features, refcount_order, header_bytes = _check_version_3(head, cluster_bits)
    _check_extensions(file, header_bytes, 1 << cluster_bits)
    subclusters = bool(features & _SUBCLUSTERS)
    _check_l1(file_size, cluster_bits, virtual_size, l1_entries, l1_offset, subclusters=subclusters)
    _check_whole(file, file_size, cluster_bits, refcount_order, refcount_offset, refcount_clusters)
    _check_apart(
        1 << cluster_bits,
        ("header", 0, header_bytes),
        ("first table", l1_offset, l1_entries * 8),
        ("table of reference counts", refcount_offset, refcount_clusters << cluster_bits),
    )
    return int(virtual_size)


def _check_version_3(head: bytes, cluster_bits: int) -> tuple[int, int, int]:
    """The incompatible features, the refcount order and the header's length, which version 3 has in its header."""
    if len(head) < _VERSION_3_BYTES:
        raise ImageRejected(f"its header is cut off after {len(head)} bytes", _AGAIN)
    features, _, autoclear, refcount_order, header_bytes = _ADDED.unpack_from(head, _COMMON.size)
    if features & _CORRUPT:
        raise ImageRejected("it is marked as corrupt", "repair it where it comes from: qemu-img check -r all")
    if features & _DATA_FILE:
        raise ImageRejected("its data are in another file", _FLATTEN)
    if unknown := features & ~_KNOWN_FEATURES:
        raise ImageRejected(f"it needs features that are not supported (bits {unknown:#x})", _FLATTEN)
    if autoclear & _RAW_DATA_FILE:
        raise ImageRejected("it says that its data are in another, raw file", _FLATTEN)
    if autoclear & _BITMAPS:
        raise ImageRejected("it contains dirty bitmaps, as backups leave them", _FLATTEN)
    if header_bytes < _VERSION_3_BYTES or header_bytes % 8 or header_bytes > 1 << cluster_bits:
        raise ImageRejected(f"its header says that it has {header_bytes} bytes", _AGAIN)
    if refcount_order > _MOST_REFCOUNT_ORDER:
        raise ImageRejected(f"its refcount_order is {refcount_order}, and 0 to 6 are possible", _AGAIN)
    # The compression type is the first byte behind what every header of version 3 has: 0 is zlib, 1 is zstd.
    compression = head[_VERSION_3_BYTES : _VERSION_3_BYTES + 1] if header_bytes > _VERSION_3_BYTES else b"\0"
    if compression != (b"\1" if features & _COMPRESSION else b"\0"):
        raise ImageRejected("it is compressed in a way that is not supported", _FLATTEN)
    if features & _SUBCLUSTERS and cluster_bits < 14:
        raise ImageRejected(f"it has subclusters in clusters of {1 << cluster_bits} bytes", _AGAIN)
    return features, refcount_order, header_bytes


def _check_extensions(file: int, start: int, end: int) -> None:
    """Walk the header's extensions, which end by a mark or with the first cluster. Unknown ones may be ignored.

    Dirty bitmaps that are not in use may be, too: but QEMU refuses them where their extension has a wrong length.
    """
    offset = start
    while offset + _EXTENSION.size <= end:
        head = os.pread(file, _EXTENSION.size, offset)
        if len(head) < _EXTENSION.size:
            raise ImageRejected("its header's extensions are cut off", _AGAIN)
        kind, length = _EXTENSION.unpack(head)
        if kind == _END_OF_EXTENSIONS:
            return
        if kind in _REFUSED_EXTENSIONS:
            raise ImageRejected(_REFUSED_EXTENSIONS[kind], _FLATTEN)
        offset += _EXTENSION.size + (length + 7) // 8 * 8
        misshapen = (kind == _BITMAPS_EXTENSION and length != _BITMAPS_BYTES) or (
            kind == _BACKING_FORMAT and length > _MOST_BACKING_FORMAT_BYTES
        )
        if offset > end or misshapen:
            raise ImageRejected(f"an extension of its header has {length} bytes", _AGAIN)


def _check_l1(
    file_size: int, cluster_bits: int, virtual_size: int, entries: int, offset: int, *, subclusters: bool
) -> None:
    """The first-level table covers the disk, is no larger than QEMU takes, and lies in the file."""
    l2_entries = (1 << cluster_bits) // (16 if subclusters else 8)
    needed = -(-virtual_size // (l2_entries << cluster_bits))
    if not needed <= entries <= _MOST_L1_BYTES // 8:
        raise ImageRejected(f"its first table has {entries} entries, and its size needs {needed}", _AGAIN)
    if offset % (1 << cluster_bits) or offset == 0 or offset + entries * 8 > file_size:
        raise ImageRejected("its first table is not in the file: it may be cut off", _AGAIN)


def _check_apart(cluster_bytes: int, *places: tuple[str, int, int]) -> None:
    """No two of these, each with its offset and length, share a cluster: QEMU would read one as the other."""
    ordered = sorted(
        (offset // cluster_bytes, -(-(offset + length) // cluster_bytes), what) for what, offset, length in places
    )
    for (_, end, one), (start, _, other) in itertools.pairwise(ordered):
        if start < end:
            raise ImageRejected(f"its {one} and its {other} overlap", _AGAIN)


def _check_whole(
    file: int, file_size: int, cluster_bits: int, refcount_order: int, table_offset: int, table_clusters: int
) -> None:
    """The reference counts lie in the file, and so does the start of the last cluster that they count."""
    cluster_bytes = 1 << cluster_bits
    table_bytes = table_clusters << cluster_bits
    if not 0 < table_bytes <= _MOST_REFCOUNT_TABLE_BYTES:
        raise ImageRejected(f"its table of reference counts has {table_clusters} clusters", _AGAIN)
    if table_offset % cluster_bytes or table_offset == 0 or table_offset + table_bytes > file_size:
        raise ImageRejected("its table of reference counts is not in the file: it may be cut off", _AGAIN)
    table = array("Q", os.pread(file, table_bytes, table_offset))
    if struct.pack("=H", 1) != struct.pack(">H", 1):
        table.byteswap()
    used = [(index, entry & _OFFSET_MASK) for index, entry in enumerate(table) if entry]
    for _, block in used:
        if block % cluster_bytes or block + cluster_bytes > file_size:
            raise ImageRejected("a block of its reference counts is not in the file: it may be cut off", _AGAIN)
    counts_in_a_block = cluster_bytes * 8 >> refcount_order
    for index, block in reversed(used[-_MOST_BLOCKS_LOOKED_AT:]):
        counts = os.pread(file, cluster_bytes, block).rstrip(b"\0")
        if counts:
            # The first cluster that the last byte counts, so at most a few clusters before the last one in use.
            last = index * counts_in_a_block + ((len(counts) - 1) * 8 >> refcount_order)
            if last << cluster_bits >= file_size:
                raise ImageRejected("it is cut off: clusters that are in use lie behind the end of the file", _AGAIN)
            return


_OVERLAY_CLUSTER_BITS: Final = 16
_OVERLAY_REFCOUNT_ORDER: Final = 4
_BASE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}", re.ASCII)


def write_overlay(path: Path, base_format: str, virtual_size_bytes: int, base_name: str) -> None:
    """Write an empty overlay of the base image `base_name`, which lies in the same directory, at the new file `path`.

    What `qemu-img create -f qcow2 -F base_format -b base_name -u` makes, in a fraction of its time. The file has mode
    0600 and is not synced. Raises ValueError for a name that is more than a plain file name, a format that is not
    taken or a size that is not whole sectors, and OSError, FileExistsError among them.
    """
    if base_format not in ("qcow2", "raw") or not _BASE_NAME.fullmatch(base_name):
        raise ValueError(f"an overlay cannot refer to {base_name!r} of format {base_format!r}")
    if virtual_size_bytes <= 0 or virtual_size_bytes % 512:
        raise ValueError(f"a disk of {virtual_size_bytes} bytes is not whole sectors of 512")
    cluster_bytes = 1 << _OVERLAY_CLUSTER_BITS
    l1_entries = -(-virtual_size_bytes // (cluster_bytes // 8 * cluster_bytes))
    l1_clusters = -(-l1_entries * 8 // cluster_bytes)
    if l1_entries * 8 > _MOST_L1_BYTES:
        raise ValueError(f"a disk of {virtual_size_bytes} bytes is larger than QEMU takes")
    # The header, the table of reference counts, its only block, and the first-level table, which stays empty.
    clusters = 3 + l1_clusters
    extension = _EXTENSION.pack(_BACKING_FORMAT, len(base_format)) + base_format.encode().ljust(8, b"\0")
    extensions = extension + _EXTENSION.pack(_END_OF_EXTENSIONS, 0)
    header_bytes = _VERSION_3_BYTES + 8
    header = _COMMON.pack(
        MAGIC, 3, header_bytes + len(extensions), len(base_name), _OVERLAY_CLUSTER_BITS, virtual_size_bytes, 0,
        l1_entries, 3 * cluster_bytes, cluster_bytes, 1, 0, 0,
    ) + _ADDED.pack(0, 0, 0, _OVERLAY_REFCOUNT_ORDER, header_bytes)  # fmt: skip
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, clusters * cluster_bytes)
        # Eight bytes of padding after the header: the compression type, which is zlib, as in QEMU's own images.
        os.pwrite(descriptor, header.ljust(header_bytes, b"\0") + extensions + base_name.encode(), 0)
        os.pwrite(descriptor, struct.pack(">Q", 2 * cluster_bytes), cluster_bytes)
        os.pwrite(descriptor, struct.pack(">H", 1) * clusters, 2 * cluster_bytes)
    finally:
        os.close(descriptor)
