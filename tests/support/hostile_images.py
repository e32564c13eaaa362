"""Files that a stranger may give for an image: each with what it tries. None of them may be taken, or open anything.

`secret` is the path of a file that nothing may ever open.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from backports import zstd

from tests.support.qcow2 import BACKING_FORMAT, BITMAPS, CLUSTER, qcow2_image, with_extension

Make = Callable[[Path], bytes]
"""The content, given the path of the secret."""

SECTOR: Final = 512
BOOT: Final = bytes(510) + b"\x55\xaa"
RAW: Final = BOOT + bytes(range(256)) * 512
EXTERNAL_DATA: Final = 0x44415441
ENCRYPTION: Final = 0x0537BE77
NOISE: Final = zlib.compress(bytes(range(256)) * 64, 0)


def _backed(secret: Path, name: bytes = b"", backing_format: bytes = b"raw") -> bytes:
    image = with_extension(qcow2_image(), BACKING_FORMAT, backing_format)
    name = name or bytes(secret)
    at = 512
    image[at : at + len(name)] = name
    struct.pack_into(">QI", image, 8, at, len(name))
    return bytes(image)


def _field(**changes: int) -> Make:
    return lambda secret: bytes(qcow2_image(**changes))


def _cut(part: float) -> Make:
    return lambda secret: bytes(qcow2_image())[: int(4 * CLUSTER * part)]


def _of(content: bytes) -> Make:
    return lambda secret: content


def _zip() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("disk.raw", RAW)
    return made.getvalue()


def _tar(secret: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as file:
        link = tarfile.TarInfo("disk.raw")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        file.addfile(link)
    return made.getvalue()


def _greedy_xz() -> bytes:
    """It asks for a dictionary of 1.5 GiB (the xz file format, section 5.3.1)."""
    made = bytearray(lzma.compress(RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]))
    size = (made[12] + 1) * 4
    made[made.index(b"\x21\x01", 12, 12 + size) + 2] = 37
    made[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(made[12 : 12 + size - 4]))
    return bytes(made)


def _greedy_zstd() -> bytes:
    maker = zstd.ZstdCompressor(options={int(zstd.CompressionParameter.window_log): 30})
    return maker.compress(RAW) + maker.flush(zstd.ZstdCompressor.FLUSH_BLOCK) + maker.compress(RAW) + maker.flush()


def _bomb(pack: Callable[[bytes], bytes]) -> Make:
    """One byte becomes more than a thousand, of a disk that begins well; the test lowers what is free of that."""
    return lambda secret: pack(BOOT + bytes((24 << 20) - SECTOR))


def _packed(inner: Make, pack: Callable[[bytes], bytes]) -> Make:
    return lambda secret: pack(inner(secret))


PACKS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": lambda data: gzip.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstd.compress,
}

_PLAIN: Final[dict[str, Make]] = {
    # Other files of the host.
    "backing-file": _backed,
    "backing-file-relative": lambda secret: _backed(secret, f"../{secret.name}".encode()),
    "backing-file-json": lambda secret: _backed(secret, b'json:{"file":{"filename":"%s"}}' % bytes(secret)),
    "backing-file-nbd": lambda secret: _backed(secret, b"nbd://127.0.0.1:10809/x"),
    "backing-file-qcow2": lambda secret: _backed(secret, b"", b"qcow2"),
    "backing-file-without-name": _field(backing_offset=512, backing_size=0),
    "backing-file-beyond": _field(backing_offset=1 << 62, backing_size=1023),
    "data-file": lambda secret: bytes(with_extension(qcow2_image(incompatible=4), EXTERNAL_DATA, bytes(secret))),
    "data-file-without-its-bit": lambda secret: bytes(with_extension(qcow2_image(), EXTERNAL_DATA, bytes(secret))),
    "data-file-raw-bit": _field(autoclear=2),
    "encrypted": _field(encryption=1),
    "encrypted-luks": _field(encryption=2),
    "encryption-header": lambda secret: bytes(with_extension(qcow2_image(), ENCRYPTION, bytes(16))),
    "luks": _of(b"LUKS\xba\xbe".ljust(4096, b"\0")),
    # A header that lies.
    "version-1": _field(version=1),
    "version-4": _field(version=4),
    "cluster-bits-8": _field(cluster_bits=8),
    "cluster-bits-22": _field(cluster_bits=22),
    "cluster-bits-huge": _field(cluster_bits=0xFFFFFFFF),
    "virtual-size-0": _field(virtual_size=0),
    "virtual-size-odd": _field(virtual_size=513),
    "virtual-size-huge": _field(virtual_size=(1 << 64) - 512),
    "virtual-size-petabyte": _field(virtual_size=1 << 50, l1_entries=1 << 21),
    "l1-too-short": _field(l1_entries=1),
    "l1-too-long": _field(l1_entries=(32 << 20) // 8 + 1),
    "l1-at-0": _field(l1_offset=0),
    "l1-askew": _field(l1_offset=3 * CLUSTER + 8),
    "l1-beyond": _field(l1_offset=1 << 60),
    "l1-over-refcounts": _field(l1_offset=CLUSTER),
    "refcounts-over-l1": _field(table_offset=3 * CLUSTER),
    "refcounts-none": _field(table_clusters=0),
    "refcounts-too-many": _field(table_clusters=1 << 31),
    "refcounts-beyond": _field(table_offset=1 << 60),
    "refcount-block-beyond": lambda secret: bytes(_patched(CLUSTER, struct.pack(">Q", 1 << 50))),
    "refcount-order-7": _field(refcount_order=7),
    "snapshots": _field(snapshots=1, snapshots_offset=CLUSTER),
    "snapshots-many": _field(snapshots=0xFFFFFFFF, snapshots_offset=CLUSTER),
    "snapshots-askew": _field(snapshots_offset=77),
    "features-unknown": _field(incompatible=1 << 40),
    "features-corrupt": _field(incompatible=2),
    "features-all": _field(incompatible=(1 << 64) - 1),
    "compression-unknown": lambda secret: bytes(_patched(104, b"\x07", header_bytes=112)),
    "header-too-short": _field(header_bytes=8),
    "header-too-long": _field(header_bytes=1 << 31),
    "extension-endless": lambda secret: bytes(with_extension(qcow2_image(), 0x1234, b"", length=0xFFFFFFF8)),
    "extension-of-bitmaps": lambda secret: bytes(with_extension(qcow2_image(), BITMAPS, bytes(8))),
    "bitmaps": _field(autoclear=1),
    "cut-in-the-magic": _of(b"QFI"),
    "cut-in-the-header": _of(bytes(qcow2_image())[:50]),
    "cut-in-the-extensions": _of(bytes(with_extension(qcow2_image(), 0x1234, bytes(8)))[:110]),
    "cut-before-refcounts": _cut(0.25),
    "cut-in-refcounts": _cut(0.5),
    "cut-before-l1": _cut(0.75),
    # Something else.
    "empty": _of(b""),
    "one-byte": _of(b"\0"),
    "zeros": _of(bytes(1 << 20)),
    "not-whole-sectors": _of(BOOT + b"x"),
    "vmdk": lambda secret: b"KDMV\1\0\0\0".ljust(1 << 16, b"\0"),
    "vmdk-cowd": _of(b"COWD".ljust(1 << 16, b"\0")),
    "vmdk-descriptor": lambda secret: b'# Disk DescriptorFile\nversion=1\nRW 8 FLAT "%s" 0\n' % bytes(secret),
    "vdi": _of((bytes(64) + b"\x7f\x10\xda\xbe").ljust(1 << 16, b"\0")),
    "vhdx": _of(b"vhdxfile".ljust(1 << 16, b"\0")),
    "vhd-dynamic": _of(b"conectix".ljust(1 << 16, b"\0")),
    "vhd-fixed": _of(RAW + b"conectix".ljust(512, b"\0")),
    "qed": lambda secret: b"QED\0".ljust(1 << 16, b"\0"),
    "parallels": _of(b"WithoutFreeSpace".ljust(1 << 16, b"\0")),
    "dmg": _of(RAW + b"koly".ljust(512, b"\0")),
    "iso": _of(bytes(32769) + b"CD001".ljust(4096, b"\0")),
    "squashfs": _of(b"hsqs".ljust(4096, b"\0")),
    "elf": _of(b"\x7fELF".ljust(4096, b"\0")),
    "script": _of(b"#!/bin/sh\nreboot\n"),
    "web-page": _of(b"<!DOCTYPE html><title>404</title>"),
    "json-name": lambda secret: b'json:{"driver":"raw"}',
    "lfs-pointer": _of(b"version https://git-lfs.github.com/spec/v1\n"),
    "tar": _tar,
    "zip": _of(_zip()),
    "bzip2": _of(bz2.compress(RAW)),
    "lz4": _of(b"\x04\x22\x4d\x18".ljust(512, b"\0")),
    "7z": _of(b"7z\xbc\xaf\x27\x1c".ljust(512, b"\0")),
}  # fmt: skip


def _patched(at: int, data: bytes, **changes: int) -> bytearray:
    image = qcow2_image(**changes)
    image[at : at + len(data)] = data
    return image


def _of_one_packing(pack: Callable[[bytes], bytes], other: Callable[[bytes], bytes]) -> dict[str, Make]:
    """What can be done to a packing: by what it does to a good one, and by what is in it."""
    whole = pack(RAW)
    return {
        "bomb": _bomb(pack),
        "of-itself": _of(pack(whole)),
        "of-another": _of(pack(other(RAW))),
        "of-a-bomb": _packed(_bomb(other), pack),
        "of-nothing": _of(pack(b"")),
        "of-a-backing-file": _packed(_backed, pack),
        "of-a-vmdk": _packed(_PLAIN["vmdk-descriptor"], pack),
        "of-a-tar": _packed(_tar, pack),
        "cut": _of(whole[:-9]),
        "magic-alone": _of(whole[:8]),
        "and-garbage": _of(whole + b"garbage!"),
        "and-a-second-header": _of(whole + bytes(qcow2_image())),
        "noise": _of(whole[:20] + NOISE),
    }


def _of_each_packing() -> Iterator[tuple[str, Make]]:
    for name, pack in PACKS.items():
        for what, make in _of_one_packing(pack, PACKS["xz" if name == "gzip" else "gzip"]).items():
            yield f"{name}-{what}", make
    yield "xz-dictionary", _of(_greedy_xz())
    yield "zstd-window", _of(_greedy_zstd())


CONTENTS: Final[dict[str, Make]] = {**_PLAIN, **dict(_of_each_packing())}
"""What a file may have in it, by what it tries."""


def _link(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def _dangling(place: Path, secret: Path) -> None:
    place.symlink_to("/nowhere/at/all")


def _loop(place: Path, secret: Path) -> None:
    place.symlink_to(place)


def _fifo(place: Path, secret: Path) -> None:
    os.mkfifo(place)


def _directory(place: Path, secret: Path) -> None:
    place.mkdir()


def _device(place: Path, secret: Path) -> None:
    os.mknod(place, 0o600 | 0o020000, os.makedev(1, 5))


def _socket(place: Path, secret: Path) -> None:
    os.mknod(place, 0o600 | 0o140000)


def _missing(place: Path, secret: Path) -> None:
    """There is nothing."""


PLACES: Final[dict[str, Callable[[Path, Path], None]]] = {
    "link": _link,
    "dangling-link": _dangling,
    "link-to-itself": _loop,
    "fifo": _fifo,
    "directory": _directory,
    "device": _device,
    "socket": _socket,
    "missing": _missing,
}
"""What may be where a file should be, by what it is."""
