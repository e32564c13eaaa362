"""What is taken for a disk image, and what is refused before any other program reads it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.images.files.header import DEFAULT_CAP_BYTES, ImageHeader, ImageRejected, inspect, write_overlay
from tests.support.qcow2 import BACKING_FORMAT, BITMAPS, CLUSTER, qcow2_image, with_extension

MIB = 1 << 20


def raw_disk(size: int = MIB) -> bytearray:
    disk = bytearray(size)
    disk[510:512] = b"\x55\xaa"
    return disk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


def reason(path: Path, content: bytes | bytearray) -> str:
    path.write_bytes(content)
    with pytest.raises(ImageRejected) as rejected:
        inspect(path)
    assert rejected.value.remedy
    return rejected.value.reason


class TestQcow2:
    def test_an_image_that_stands_for_itself_is_taken(self, image: Path) -> None:
        image.write_bytes(qcow2_image())
        assert inspect(image) == ImageHeader("qcow2", 1 << 30, 4 * CLUSTER)

    def test_version_2_is_taken(self, image: Path) -> None:
        # Its header ends before what version 3 added; what lies there are extensions, of which it has none.
        image.write_bytes(qcow2_image(version=2, refcount_order=0, header_bytes=0))
        assert inspect(image).virtual_size_bytes == 1 << 30

    @pytest.mark.parametrize("feature", [1, 16])
    def test_features_that_change_nothing_for_a_reader_are_taken(self, image: Path, feature: int) -> None:
        image.write_bytes(qcow2_image(incompatible=feature, l1_entries=4))
        assert inspect(image).format == "qcow2"

    def test_zstd_is_taken_and_an_unknown_compression_refused(self, image: Path) -> None:
        content = qcow2_image(incompatible=8, header_bytes=112)
        content[104] = 1
        image.write_bytes(content)
        assert inspect(image).format == "qcow2"
        content[104] = 2
        assert reason(image, content) == "it is compressed in a way that is not supported"
        assert "compressed" in reason(image, qcow2_image(incompatible=8))
        content = qcow2_image(header_bytes=112)
        image.write_bytes(content)
        assert inspect(image).format == "qcow2"
        content[104] = 1
        assert "compressed" in reason(image, content), "a type without its feature"

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"backing_offset": 512, "backing_size": 11}, "backing file"),
            ({"incompatible": 4}, "in another file"),
            ({"incompatible": 2}, "corrupt"),
            ({"incompatible": 1 << 5}, "features that are not supported (bits 0x20)"),
            ({"incompatible": 1 << 63}, "features that are not supported"),
            ({"encryption": 1}, "encrypted"),
            ({"encryption": 2}, "encrypted"),
            ({"snapshots": 1}, "internal snapshots (1)"),
            ({"snapshots_offset": 8}, "its table of snapshots, which is empty, is at 8"),
            ({"snapshots_offset": 1 << 63}, "is at 9223372036854775808"),
            ({"autoclear": 2}, "another, raw file"),
            ({"autoclear": (1 << 64) - 1}, "another, raw file"),
            ({"autoclear": 1}, "dirty bitmaps"),
            ({"version": 1}, "version 1"),
            ({"version": 4}, "version 4"),
            ({"cluster_bits": 8}, "cluster_bits are 8"),
            ({"cluster_bits": 22}, "cluster_bits are 22"),
            ({"cluster_bits": 0xFFFFFFFF}, "cluster_bits"),
            ({"virtual_size": 0}, "0 bytes"),
            ({"virtual_size": (1 << 30) + 1}, "not a multiple of 512"),
            ({"l1_entries": 1}, "first table has 1 entries"),
            ({"l1_entries": (4 << 20) + 1}, "first table has"),
            ({"l1_offset": 0}, "first table is not in the file"),
            ({"l1_offset": 4 * CLUSTER}, "first table is not in the file"),
            ({"l1_offset": 3 * CLUSTER + 8}, "first table is not in the file"),
            ({"l1_offset": (1 << 64) - CLUSTER}, "first table is not in the file"),
            ({"table_offset": 0}, "reference counts is not in the file"),
            ({"table_offset": 4 * CLUSTER}, "reference counts is not in the file"),
            ({"table_offset": CLUSTER + 1}, "reference counts is not in the file"),
            ({"table_clusters": 0}, "has 0 clusters"),
            ({"table_clusters": 129}, "has 129 clusters"),
            ({"refcount_order": 7}, "refcount_order is 7"),
            ({"header_bytes": 96}, "header says"),
            ({"header_bytes": 108}, "header says"),
            ({"header_bytes": 2 * CLUSTER}, "header says"),
        ],
    )
    def test_a_header_that_asks_for_something_else_is_refused(
        self, image: Path, changes: dict[str, int], why: str
    ) -> None:
        assert why in reason(image, qcow2_image(**changes))

    def test_subclusters_in_small_clusters_are_refused(self, image: Path) -> None:
        assert "subclusters" in reason(image, qcow2_image(incompatible=16, cluster_bits=12, l1_entries=4096))

    def test_extensions_that_lead_out_of_the_file_are_refused(self, image: Path) -> None:
        assert "in another file" in reason(image, with_extension(qcow2_image(), 0x44415441, b"/etc/shadow"))
        assert "encrypted" in reason(image, with_extension(qcow2_image(), 0x0537BE77, bytes(16)))
        assert "an extension" in reason(image, with_extension(qcow2_image(), 0x12345678, b"", length=0xFFFFFFFF))

    @pytest.mark.parametrize(("kind", "most"), [(BITMAPS, 24), (BACKING_FORMAT, 15)])
    def test_an_extension_that_qemu_knows_has_the_length_that_it_takes(self, image: Path, kind: int, most: int) -> None:
        image.write_bytes(with_extension(qcow2_image(), kind, bytes(most)))
        assert inspect(image).format == "qcow2"
        assert f"has {most + 1} bytes" in reason(image, with_extension(qcow2_image(), kind, bytes(most + 1)))

    @pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 15, 17])
    def test_what_follows_an_extension_of_any_length_is_read_where_it_is(self, image: Path, length: int) -> None:
        content = with_extension(qcow2_image(), 0x12345678, bytes(length))
        image.write_bytes(content)
        assert inspect(image).format == "qcow2"
        behind = 112 + -(-length // 8) * 8
        assert "in another file" in reason(image, with_extension(content, 0x44415441, b"", offset=behind))

    def test_an_extension_may_end_with_the_first_cluster_and_not_behind_it(self, image: Path) -> None:
        room = CLUSTER - 112
        image.write_bytes(with_extension(qcow2_image(), 0x12345678, b"", length=room))
        assert inspect(image).format == "qcow2"
        image.write_bytes(with_extension(qcow2_image(), 0x12345678, b"", length=room - 7))
        assert inspect(image).format == "qcow2"
        assert "an extension" in reason(image, with_extension(qcow2_image(), 0x12345678, b"", length=room + 1))

    def test_a_place_for_snapshots_is_no_snapshot(self, image: Path) -> None:
        image.write_bytes(qcow2_image(snapshots_offset=3 * CLUSTER))
        assert inspect(image).format == "qcow2"

    def test_an_unknown_extension_is_none_of_our_business(self, image: Path) -> None:
        image.write_bytes(with_extension(qcow2_image(), 0x12345678, b"anything"))
        assert inspect(image).format == "qcow2"

    def test_a_disk_larger_than_the_cap_is_refused(self, image: Path) -> None:
        image.write_bytes(qcow2_image())
        assert inspect(image, cap_bytes=1 << 30).format == "qcow2"
        with pytest.raises(ImageRejected, match="its disk has 1073741824 bytes"):
            inspect(image, cap_bytes=(1 << 30) - 1)
        assert "allowed" in reason(image, qcow2_image(virtual_size=DEFAULT_CAP_BYTES + 512, l1_entries=4097))

    def test_an_image_that_is_cut_off_anywhere_is_refused(self, image: Path) -> None:
        whole = bytes(qcow2_image())
        for length in (4, 71, 72, 103, 104, 200, CLUSTER, CLUSTER + 8, 2 * CLUSTER, 3 * CLUSTER, 3 * CLUSTER + 8):
            assert reason(image, whole[:length])

    def test_a_table_may_end_with_the_file_and_not_behind_it(self, image: Path) -> None:
        first = bytes(qcow2_image())[: 3 * CLUSTER + 16]
        counts = qcow2_image(table_offset=4 * CLUSTER) + bytes(CLUSTER)
        struct.pack_into(">Q", counts, 4 * CLUSTER, 2 * CLUSTER)
        block = qcow2_image() + bytes(CLUSTER)
        struct.pack_into(">Q", block, CLUSTER, 4 * CLUSTER)
        for content, why in ((first, "first table"), (counts, "reference counts is not"), (block, "a block of its")):
            image.write_bytes(content)
            assert inspect(image).format == "qcow2"
            assert why in reason(image, content[:-1])

    def test_a_first_table_of_the_largest_size_is_taken(self, image: Path) -> None:
        image.write_bytes(qcow2_image(l1_entries=4 << 20))
        os.truncate(image, 3 * CLUSTER + (32 << 20))
        assert inspect(image).format == "qcow2"

    def test_an_image_whose_last_clusters_are_missing_is_refused(self, image: Path) -> None:
        content = qcow2_image()
        struct.pack_into(">H", content, 2 * CLUSTER + 2 * 4, 1)
        assert "behind the end" in reason(image, content)
        image.write_bytes(content + b"the last cluster may be short")
        assert inspect(image).format == "qcow2"

    def test_a_block_of_reference_counts_outside_the_file_is_refused(self, image: Path) -> None:
        for offset in (4 * CLUSTER, 2 * CLUSTER + 512, 1 << 40):
            content = qcow2_image()
            struct.pack_into(">Q", content, CLUSTER + 8, offset)
            assert "a block of its reference counts" in reason(image, content)

    @given(
        st.lists(
            st.tuples(st.one_of(st.integers(0, 128), st.sampled_from([CLUSTER, 2 * CLUSTER])), st.integers(0, 255)),
            max_size=12,
        ),
        st.integers(0, 4 * CLUSTER),
    )
    def test_no_change_to_a_header_does_more_than_refuse(
        self, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
    ) -> None:
        content = qcow2_image()
        for offset, value in changes:
            content[offset] = value
        image = tmp_path_factory.getbasetemp() / "mutated"
        image.write_bytes(content[:length])
        try:
            header = inspect(image)
        except ImageRejected:
            return
        assert 0 < header.virtual_size_bytes <= DEFAULT_CAP_BYTES

    @given(st.lists(st.sampled_from([0, 1, 2, 3, 8, 16, 104, 112, 1 << 16, (1 << 32) - 1]), min_size=26, max_size=26))
    def test_a_header_of_interesting_numbers_does_no_more_than_be_refused(
        self, tmp_path_factory: pytest.TempPathFactory, words: list[int]
    ) -> None:
        content = qcow2_image()
        struct.pack_into(">25I", content, 8, *words[1:])
        image = tmp_path_factory.getbasetemp() / "numbers"
        image.write_bytes(content)
        try:
            inspect(image)
        except ImageRejected:
            return


class TestRaw:
    def test_a_disk_with_a_boot_signature_is_taken(self, image: Path) -> None:
        image.write_bytes(raw_disk())
        assert inspect(image) == ImageHeader("raw", MIB, MIB)

    def test_a_disk_that_no_bios_boots_is_refused(self, image: Path) -> None:
        assert "no boot signature" in reason(image, bytes(MIB))

    def test_a_disk_that_is_not_whole_sectors_is_refused(self, image: Path) -> None:
        assert "may be cut off" in reason(image, raw_disk()[:-1])

    def test_an_empty_file_is_refused(self, image: Path) -> None:
        assert reason(image, b"") == "it is empty"

    def test_a_raw_disk_larger_than_the_cap_is_refused(self, image: Path) -> None:
        image.write_bytes(raw_disk())
        with pytest.raises(ImageRejected, match="are allowed"):
            inspect(image, cap_bytes=MIB - 512)

    @pytest.mark.parametrize(
        ("offset", "magic", "what"),
        [
            (0, b"KDMV", "VMware"),
            (0, b"# Disk DescriptorFile", "VMware"),
            (64, b"\x7f\x10\xda\xbe", "VirtualBox"),
            (0, b"vhdxfile", "Hyper-V"),
            (0, b"conectix", "Virtual PC"),
            (0, b"QED\0", "QED"),
            (0, b"LUKS\xba\xbe", "encrypted"),
            (0, b"\x1f\x8b\x08", "gzip"),
            (0, b"\xfd7zXZ\0", "xz"),
            (0, b"\x28\xb5\x2f\xfd", "zstd"),
            (0, b"BZh9", "bzip2"),
            (0, b"PK\x03\x04", "zip"),
            (257, b"ustar", "tar"),
            (32769, b"CD001", "installation CD"),
            (0, b"\x7fELF", "program"),
            (0, b"\n <!DOCTYPE html>", "web page"),
            (0, b"<html>", "web page"),
            (0, b'{"message": "not found"}', "text"),
            (MIB - 512, b"conectix", "Virtual PC"),
            (MIB - 512, b"koly", "Apple"),
        ],
    )
    def test_other_formats_are_refused_by_name_even_with_a_boot_signature(
        self, image: Path, offset: int, magic: bytes, what: str
    ) -> None:
        content = raw_disk()
        content[offset : offset + len(magic)] = magic
        assert what in reason(image, content)

    def test_nothing_but_a_file_is_opened(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.write_bytes(raw_disk())
        link = tmp_path / "link"
        link.symlink_to(target)
        with pytest.raises(OSError, match="symbolic links"):
            inspect(link)
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
            with pytest.raises(ImageRejected, match="not a regular file"):
                inspect(path)


class TestOverlay:
    def test_a_name_that_is_more_than_a_file_name_is_never_written(self, tmp_path: Path) -> None:
        for name in ("", "../base", "/etc/shadow", "json:{}", "nbd://host", "fd:3", "a\nb", ".hidden", "x" * 256):
            with pytest.raises(ValueError, match="cannot refer"):
                write_overlay(tmp_path / "disk", "raw", MIB, name)
        with pytest.raises(ValueError, match="cannot refer"):
            write_overlay(tmp_path / "disk", "vmdk", MIB, "base.img")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("size", [0, -512, 513, 1 << 60])
    def test_a_size_that_is_none_is_refused(self, tmp_path: Path, size: int) -> None:
        with pytest.raises(ValueError, match="disk of"):
            write_overlay(tmp_path / "disk", "raw", size, "base.img")

    def test_a_file_that_is_there_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_text("precious")
        with pytest.raises(FileExistsError):
            write_overlay(tmp_path / "disk", "raw", MIB, "base.img")
        assert (tmp_path / "disk").read_text() == "precious"

    def test_an_overlay_is_private_and_is_refused_as_an_image(self, tmp_path: Path) -> None:
        write_overlay(tmp_path / "disk", "raw", MIB, "base.img")
        assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o600
        with pytest.raises(ImageRejected, match="backing file"):
            inspect(tmp_path / "disk")
