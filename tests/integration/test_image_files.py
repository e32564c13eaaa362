"""Image files, as QEMU's own tools make them and see them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.images.files.header import ImageRejected, inspect, write_overlay

pytestmark = pytest.mark.integration

MIB = 1 << 20


def qemu_img(*arguments: str | Path) -> str:
    return subprocess.run(
        ["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout


def qemu_io(disk: Path, *commands: str) -> str:
    arguments = [part for command in commands for part in ("-c", command)]
    return subprocess.run(
        ["qemu-io", "-f", "qcow2", *arguments, disk], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A raw disk of 8 MiB with a boot signature and something to read behind it."""
    content = bytearray(os.urandom(8 * MIB))
    content[0:512] = bytes(510) + b"\x55\xaa"
    path = tmp_path / "base.img"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "options",
    ["", "compat=0.10", "cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64",
     "extended_l2=on", "compression_type=zstd", "preallocation=metadata", "lazy_refcounts=on"],
)  # fmt: skip
def test_what_qemu_writes_is_taken_and_refused_once_it_is_cut_off(tmp_path: Path, base: Path, options: str) -> None:
    image = tmp_path / "image.qcow2"
    compressed = ["-c"] if "compression" in options else []
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *compressed, *(["-o", options] if options else []), base, image)
    header = inspect(image)
    assert (header.format, header.virtual_size_bytes) == ("qcow2", 8 * MIB)
    for part in (0.2, 0.5, 0.8):
        cut = tmp_path / "cut.qcow2"
        cut.write_bytes(image.read_bytes()[: int(header.file_size_bytes * part)])
        with pytest.raises(ImageRejected):
            inspect(cut)


def test_what_leads_to_other_files_is_refused(tmp_path: Path, base: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", base, tmp_path / "backed")
    with pytest.raises(ImageRejected, match="backing file"):
        inspect(tmp_path / "backed")
    qemu_img(
        "create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", tmp_path / "outside", "1M"
    )
    with pytest.raises(ImageRejected, match="in another file"):
        inspect(tmp_path / "outside")


def test_what_is_encrypted_or_has_snapshots_is_refused(tmp_path: Path) -> None:
    secret = ("--object", "secret,id=s,data=x")
    # The old way: for the new one qemu-img measures the processor, which fails on a busy machine.
    options = "encrypt.format=aes,encrypt.key-secret=s"
    qemu_img("create", *secret, "-f", "qcow2", "-o", options, tmp_path / "encrypted", "1M")
    with pytest.raises(ImageRejected, match="encrypted"):
        inspect(tmp_path / "encrypted")
    qemu_img("create", "-f", "qcow2", tmp_path / "snapshots", "1M")
    qemu_img("snapshot", "-c", "one", tmp_path / "snapshots")
    with pytest.raises(ImageRejected, match="snapshots"):
        inspect(tmp_path / "snapshots")


@pytest.mark.parametrize("other", ["qcow", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"])
def test_every_other_format_of_qemu_is_refused(tmp_path: Path, other: str) -> None:
    qemu_img("create", "-f", other, tmp_path / "image", "16M")
    with pytest.raises(ImageRejected):
        inspect(tmp_path / "image")


@pytest.mark.parametrize("size_mib", [8, 64, 10 * 1024, 2 << 20, 100 << 20])
def test_an_overlay_is_what_qemu_would_have_made(tmp_path: Path, base: Path, size_mib: int) -> None:
    disk = tmp_path / "disk.qcow2"
    write_overlay(disk, "raw", size_mib * MIB, base.name)
    assert "No errors were found" in qemu_img("check", "-f", "qcow2", disk)
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", base.name, tmp_path / "reference", str(size_mib * MIB))

    def info(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", path))
        return {key: value for key, value in found.items() if key not in ("filename", "actual-size", "children")}

    assert info(disk) == info(tmp_path / "reference")
    assert info(disk)["backing-filename"] == base.name
    assert info(disk)["backing-filename-format"] == "raw"


@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
def test_an_overlay_reads_its_base_and_keeps_what_is_written(tmp_path: Path, base: Path, base_format: str) -> None:
    original = base.read_bytes()
    if base_format == "qcow2":
        qemu_img("convert", "-f", "raw", "-O", "qcow2", base, tmp_path / "base.qcow2")
        base = tmp_path / "base.qcow2"
    before = base.read_bytes()
    disk = tmp_path / "disk.qcow2"
    write_overlay(disk, base_format, 64 * MIB, base.name)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == original + bytes(56 * MIB)
    qemu_io(disk, "write -P 0x5a 1M 64k", "write -P 0xa5 63M 1M", "flush")
    assert "No errors were found" in qemu_img("check", "-f", "qcow2", disk)
    read = qemu_io(disk, "read -P 0x5a 1M 64k", "read -P 0xa5 63M 1M", "read -P 0 32M 64k")
    assert "Pattern verification failed" not in read
    assert base.read_bytes() == before
