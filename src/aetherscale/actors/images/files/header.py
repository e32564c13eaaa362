"""Our own look at a disk image, before any other program parses it: what it is, how large, and whether to take it.

Two formats are taken. *qcow2*, versions 2 and 3 (QEMU, docs/interop/qcow2.txt), when it stands for itself: no backing
file, no external data file, no encryption, no snapshots, no feature that is not known here, and all tables where the
file is. *raw*, when it is a whole number of sectors and a BIOS would boot it: raw images have no header, so that
everything would be one, and a download that went wrong must not be. The format is recorded and always given to QEMU;
nothing probes it again.

Every read is bounded: a hostile file costs little more than an ordinary one. Nothing here looks at the data itself.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from aetherscale.actors.images.files import qcow2
from aetherscale.actors.images.files.qcow2 import write_overlay
from aetherscale.actors.images.files.rejected import ImageRejected

__all__ = ["DEFAULT_CAP_BYTES", "ImageHeader", "ImageRejected", "inspect", "write_overlay"]

DEFAULT_CAP_BYTES: Final = 2 << 40
"""The largest disk that an image may stand for, by default: what a partition table of a BIOS can address."""

SECTOR_BYTES: Final = 512
_BOOT_SIGNATURE: Final = b"\x55\xaa"
_BOOT_SIGNATURE_OFFSET: Final = 510
_HEAD_BYTES: Final = 36 * 1024
_CONVERT: Final = "convert it: qemu-img convert -O qcow2 OLD NEW.qcow2"
_UNPACK: Final = "unpack it first, and import the image in it"
_WRONG_ADDRESS: Final = "check the source: it is something else than an image"

# Where, what, what it is, and what to do. The first that fits counts.
_OTHERS: Final[tuple[tuple[int, bytes, str, str], ...]] = (
    (0, b"KDMV", "a VMware disk (vmdk)", _CONVERT),
    (0, b"COWD", "a VMware disk (vmdk)", _CONVERT),
    (0, b"# Disk DescriptorFile", "the description of a VMware disk (vmdk)", _CONVERT),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk (vdi)", _CONVERT),
    (0, b"vhdxfile", "a Hyper-V disk (vhdx)", _CONVERT),
    (0, b"conectix", "a Virtual PC disk (vhd)", _CONVERT),
    (0, b"QED\0", "a QED disk", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels disk", _CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels disk", _CONVERT),
    (0, b"LUKS\xba\xbe", "an encrypted LUKS volume", "import an image that is not encrypted"),
    (0, b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (0, b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (0, b"BZh", "compressed with bzip2", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (257, b"ustar", "a tar archive (perhaps an OVA appliance)", _UNPACK),
    (0, b"!<arch>\n", "an ar archive or a Debian package", _WRONG_ADDRESS),
    (0, b"hsqs", "a squashfs file system", "import an image of a whole disk"),
    (0, b"\x7fELF", "a program (ELF)", _WRONG_ADDRESS),
    (
        32769,
        b"CD001",
        "an installation CD (ISO 9660)",
        "import an image of an installed disk, a cloud image for example",
    ),
)
_TAILS: Final = ((b"conectix", "a Virtual PC disk (vhd)", _CONVERT), (b"koly", "an Apple disk image (dmg)", _CONVERT))
_TEXTS: Final = (b"<!doctype", b"<html", b"<?xml", b"{", b"#!", b"version https://git-lfs")


class ImageHeader(Struct, frozen=True):
    """An image: its format, the size of its disk, and of the file, in bytes."""

    format: Literal["qcow2", "raw"]
    virtual_size_bytes: int
    file_size_bytes: int


def inspect(path: Path, *, cap_bytes: int = DEFAULT_CAP_BYTES) -> ImageHeader:
    """The header of the image at `path`. Follows no symbolic link, and waits for no FIFO.

    Raises ImageRejected with the reason, and OSError when the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageRejected("it is not a regular file", "give the path of an image")
        return _inspect(descriptor, status.st_size, cap_bytes)
    finally:
        os.close(descriptor)


def _inspect(file: int, file_size: int, cap_bytes: int) -> ImageHeader:
    head = os.pread(file, _HEAD_BYTES, 0)
    if head.startswith(qcow2.MAGIC):
        image_format: Literal["qcow2", "raw"] = "qcow2"
        virtual_size = qcow2.check(file, file_size)
    else:
        image_format = "raw"
        _check_raw(head, os.pread(file, SECTOR_BYTES, max(0, file_size - SECTOR_BYTES)), file_size)
        virtual_size = file_size
    if virtual_size > cap_bytes:
        raise ImageRejected(
            f"its disk has {virtual_size} bytes, and at most {cap_bytes} are allowed", "import a smaller image"
        )
    return ImageHeader(image_format, virtual_size, file_size)


def look_at_head(head: bytes) -> None:
    """Refuse a file by its first bytes, as far as they say that it is none. Raises ImageRejected."""
    for offset, magic, what, hint in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            raise ImageRejected(f"it is {what}, and neither qcow2 nor a raw disk", hint)
    if head[:64].lstrip().lower().startswith(_TEXTS):
        raise ImageRejected("it is a text or a web page, not a disk image", _WRONG_ADDRESS)


def _check_raw(head: bytes, tail: bytes, file_size: int) -> None:
    if file_size == 0:
        raise ImageRejected("it is empty", "was it copied, downloaded or made to its end? look with: ls -l")
    look_at_head(head)
    for magic, what, hint in _TAILS:
        if tail.startswith(magic):
            raise ImageRejected(f"it is {what}, and neither qcow2 nor a raw disk", hint)
    if file_size % SECTOR_BYTES:
        raise ImageRejected(
            f"a raw disk has whole sectors of {SECTOR_BYTES} bytes, and {file_size} bytes are none: it may be cut off",
            "get it again, and give its checksum: --sha256",
        )
    if head[_BOOT_SIGNATURE_OFFSET : _BOOT_SIGNATURE_OFFSET + 2] != _BOOT_SIGNATURE:
        raise ImageRejected(
            "it is neither qcow2 nor a raw disk that boots: its first sector has no boot signature (0x55aa at 510)",
            "import an image of a whole disk, with a partition table and a boot loader",
        )
