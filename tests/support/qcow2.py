"""qcow2 images by the fields of their header, good ones and others."""

from __future__ import annotations

import struct
from typing import Final

CLUSTER: Final = 1 << 16
FIELDS: Final[dict[str, int]] = {
    "magic": 0x514649FB, "version": 3, "backing_offset": 0, "backing_size": 0, "cluster_bits": 16,
    "virtual_size": 1 << 30, "encryption": 0, "l1_entries": 2, "l1_offset": 3 * CLUSTER, "table_offset": CLUSTER,
    "table_clusters": 1, "snapshots": 0, "snapshots_offset": 0, "incompatible": 0, "compatible": 0, "autoclear": 0,
    "refcount_order": 4, "header_bytes": 104,
}  # fmt: skip
LAYOUT: Final = ">IIQIIQIIQQIIQQQQII"
BITMAPS: Final = 0x23852875
BACKING_FORMAT: Final = 0xE2792ACA


def qcow2_image(**changes: int) -> bytearray:
    """An empty qcow2 image of 1 GiB, version 3, as QEMU makes it, but for the named fields of its header."""
    assert changes.keys() <= FIELDS.keys()
    image = bytearray(4 * CLUSTER)
    struct.pack_into(LAYOUT, image, 0, *(FIELDS | changes).values())
    struct.pack_into(">Q", image, CLUSTER, 2 * CLUSTER)
    struct.pack_into(">HHHH", image, 2 * CLUSTER, 1, 1, 1, 1)
    return image


def with_extension(
    image: bytearray, kind: int, data: bytes, *, length: int | None = None, offset: int = 104
) -> bytearray:
    """The image with an extension of its header, whose length may be a lie."""
    struct.pack_into(">II", image, offset, kind, len(data) if length is None else length)
    image[offset + 8 : offset + 8 + len(data)] = data
    return image
