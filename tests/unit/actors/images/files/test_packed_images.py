"""Compressed images come out as they went in, and nothing else does: bombs, halves, garbage, and what wants memory."""

from __future__ import annotations

import gzip
import lzma
import os
import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from aetherscale.actors.images.files import packed
from aetherscale.actors.images.files.header import look_at_head
from aetherscale.actors.images.files.packed import Packing, packing_of, unpack
from aetherscale.actors.images.files.rejected import ImageRejected

MIB = 1 << 20
DISK = bytes(510) + b"\x55\xaa" + os.urandom(MIB - 512) + bytes(3 * MIB) + os.urandom(MIB)
Pack = Callable[[bytes], bytes]
PACKS: dict[Packing, Pack] = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd.compress}

EACH = pytest.mark.parametrize("packing", list(PACKS))


class Unpacked:
    """What came out of a file, and what of it was written."""

    def __init__(self, directory: Path, content: bytes) -> None:
        source, target = directory / "source", directory / "target"
        source.write_bytes(content)
        self.calls: list[tuple[int, int]] = []
        original = os.open(source, os.O_RDONLY)
        output = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            packing = packing_of(original)
            assert packing is not None
            self.size_bytes = unpack(
                original, packing, output, look_at_head, lambda done, total: self.calls.append((done, total))
            )
            self.blocks = os.fstat(output).st_blocks
        finally:
            os.close(original)
            os.close(output)
        self.content = target.read_bytes()


def refusal(directory: Path, content: bytes) -> str:
    with pytest.raises(ImageRejected) as rejected:
        Unpacked(directory, content)
    assert rejected.value.remedy
    return rejected.value.reason


class TestWhole:
    @EACH
    def test_it_comes_out_as_it_went_in_with_its_holes(self, tmp_path: Path, packing: Packing) -> None:
        out = Unpacked(tmp_path, PACKS[packing](DISK))
        assert (out.content, out.size_bytes) == (DISK, len(DISK))
        assert out.blocks * 512 < len(DISK) - 2 * MIB
        assert out.calls[-1][0] == out.calls[-1][1] == (tmp_path / "source").stat().st_size
        assert [done for done, _ in out.calls] == sorted(done for done, _ in out.calls)

    @EACH
    @pytest.mark.parametrize("size", [512, 64 * 1024 - 1, 64 * 1024, MIB, MIB + 1])
    def test_it_has_its_size_whatever_that_is(self, tmp_path: Path, packing: Packing, size: int) -> None:
        content = DISK[:512].ljust(size, b"\1")
        assert Unpacked(tmp_path, PACKS[packing](content)).content == content

    @EACH
    def test_one_that_ends_with_zeros_has_them(self, tmp_path: Path, packing: Packing) -> None:
        content = DISK[:MIB] + bytes(MIB)
        assert Unpacked(tmp_path, PACKS[packing](content)).content == content

    @EACH
    @pytest.mark.parametrize("padding", [0, 4, 512, MIB])
    def test_streams_one_after_the_other_are_one_file(self, tmp_path: Path, packing: Packing, padding: int) -> None:
        pack = PACKS[packing]
        parts = [pack(DISK[: 2 * MIB]), pack(b""), pack(DISK[2 * MIB :])]
        assert Unpacked(tmp_path, b"".join(part + bytes(padding) for part in parts)).content == DISK

    @EACH
    def test_the_packing_is_told_by_the_first_bytes(self, tmp_path: Path, packing: Packing) -> None:
        path = tmp_path / "image.raw"
        path.write_bytes(PACKS[packing](DISK))
        with path.open("rb") as file:
            assert packing_of(file.fileno()) == packing

    @pytest.mark.parametrize("content", [b"", b"\x1f", DISK[:512], b"QFI\xfb", b"BZh9"])
    def test_what_is_not_compressed_is_not(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "image.gz"
        path.write_bytes(content)
        with path.open("rb") as file:
            assert packing_of(file.fileno()) is None


class TestBroken:
    @EACH
    @pytest.mark.parametrize("kept", [0.01, 0.3, 0.7, 0.99])
    def test_one_that_is_cut_off_is_refused(self, tmp_path: Path, packing: Packing, kept: float) -> None:
        whole = PACKS[packing](DISK)
        assert "cut off" in refusal(tmp_path, whole[: max(12, int(len(whole) * kept))])

    @pytest.mark.parametrize("missing", [1, 4, 8])
    def test_a_gzip_without_its_checksum_is_refused(self, tmp_path: Path, missing: int) -> None:
        assert "cut off" in refusal(tmp_path, gzip.compress(DISK)[:-missing])

    @EACH
    @pytest.mark.parametrize("garbage", [b"x", b"\1" * 100, b"QFI\xfb" * 4, b"\0\0\0\0\1" + b"y" * MIB])
    def test_garbage_behind_it_is_refused(self, tmp_path: Path, packing: Packing, garbage: bytes) -> None:
        assert "something follows the end" in refusal(tmp_path, PACKS[packing](DISK) + garbage)

    @pytest.mark.parametrize(("packing", "at"), [("gzip", 0.25), ("gzip", 1.0), ("xz", 0.25), ("xz", 1.0)])
    def test_a_bit_that_flipped_is_seen(self, tmp_path: Path, packing: Packing, at: float) -> None:
        whole = bytearray(PACKS[packing](DISK))
        # Among what cannot be compressed: in a run of zeros another distance may mean the same zeros.
        whole[min(len(whole) - 6, int(len(whole) * at))] ^= 0x10
        assert "broken" in refusal(tmp_path, bytes(whole))

    def test_a_bit_that_flipped_is_seen_where_zstd_has_a_checksum(self, tmp_path: Path) -> None:
        options = {int(zstd.CompressionParameter.checksum_flag): 1}
        whole = bytearray(zstd.compress(DISK, options=options))
        whole[len(whole) // 4] ^= 0x10
        assert "broken" in refusal(tmp_path, bytes(whole))

    @EACH
    @pytest.mark.parametrize("inner", list(PACKS))
    def test_one_that_is_compressed_twice_is_refused_early(
        self, tmp_path: Path, packing: Packing, inner: Packing
    ) -> None:
        # Much more would come out after the first look.
        content = PACKS[inner](DISK).ljust(8 * MIB, b"\0")
        assert refusal(tmp_path, PACKS[packing](content)) == "it is compressed twice"
        assert (tmp_path / "target").stat().st_size < 2 * MIB

    @EACH
    @pytest.mark.parametrize("inner", [b"KDMV", b"vhdxfile", b"\x7fELF", b"<!doctype html>", b"#!/bin/sh"])
    def test_what_comes_out_is_looked_at_early(self, tmp_path: Path, packing: Packing, inner: bytes) -> None:
        refusal(tmp_path, PACKS[packing](inner.ljust(64 * MIB, b"\1")))
        assert (tmp_path / "target").stat().st_size < 2 * MIB


def pieces(size: int, piece: bytes) -> Iterator[bytes]:
    for _ in range(size // len(piece)):
        yield piece


def bomb(packing: Packing, size: int) -> bytes:
    """A disk with a boot sector, and nothing but zeros behind it."""
    makers: dict[Packing, Any] = {
        "gzip": lambda: zlib.compressobj(9, zlib.DEFLATED, 31),
        "xz": lambda: lzma.LZMACompressor(lzma.FORMAT_XZ, preset=0),
        "zstd": zstd.ZstdCompressor,
    }
    maker = makers[packing]()
    made = [maker.compress(DISK[:512].ljust(MIB, b"\0"))]
    made += [maker.compress(piece) for piece in pieces(size - MIB, bytes(MIB))]
    return b"".join([*made, maker.flush()])


class TestBombs:
    @pytest.fixture(autouse=True)
    def smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same in a thousandth of the time."""
        monkeypatch.setattr(packed, "RATIO_FREE_BYTES", 4 * MIB)
        monkeypatch.setattr(packed, "MOST_UNPACKED_BYTES", 96 * MIB)

    @pytest.mark.parametrize("packing", ["gzip", "xz", "zstd"])
    def test_a_bomb_is_given_up_early(self, tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packed, "MOST_RATIO", 100)
        said = refusal(tmp_path, bomb(packing, 64 * MIB))
        assert "it unpacks to more than 100 times its size" in said
        made = int(said.split(": ")[1].split(" ")[0])
        assert made < 32 * MIB

    @EACH
    def test_more_than_the_cap_is_refused_and_the_cap_is_not(
        self, tmp_path: Path, packing: Packing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(packed, "MOST_RATIO", 1 << 40)
        assert Unpacked(tmp_path, bomb(packing, 96 * MIB)).size_bytes == 96 * MIB
        assert "it unpacks to more than" in refusal(tmp_path, bomb(packing, 97 * MIB))

    def test_a_stream_that_needs_much_memory_is_refused(self, tmp_path: Path) -> None:
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        greedy = lzma_header_with_dictionary(DISK[:MIB])
        assert "memory" in refusal(tmp_path, greedy)
        window = {int(zstd.CompressionParameter.window_log): 30}
        maker = zstd.ZstdCompressor(options=window)
        wide = maker.compress(DISK[:512]) + maker.flush(zstd.ZstdCompressor.FLUSH_BLOCK)
        wide += maker.compress(bytes(MIB)) + maker.flush()
        assert "memory" in refusal(tmp_path, wide)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert grown_kib < packed.MOST_MEMORY_BYTES // 1024

    def test_memory_does_not_grow_with_what_comes_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packed, "MOST_RATIO", 1 << 40)
        sizes: list[int] = []
        wrote = packed._write

        def write(target: int, piece: bytes, offset: int) -> int:
            sizes.append(len(piece))
            return wrote(target, piece, offset)

        monkeypatch.setattr(packed, "_write", write)  # what is in memory at one time
        for packing in PACKS:
            Unpacked(tmp_path, bomb(packing, 64 * MIB))
        assert max(sizes) <= packed._WRITE_BYTES


def lzma_header_with_dictionary(content: bytes) -> bytes:
    """An xz file whose block header asks for a dictionary of 1.5 GiB: that of one of 1 MiB, with another size in it."""
    made = bytearray(lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": MIB}]))
    header = 12
    size = (made[header] + 1) * 4
    at = made.index(b"\x21\x01", header, header + size) + 2
    made[at] = 37  # 1.5 GiB, see the xz file format, section 5.3.1
    made[header + size - 4 : header + size] = struct.pack("<I", zlib.crc32(made[header : header + size - 4]))
    return bytes(made)
