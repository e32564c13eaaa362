"""Copies of files that other programs may have locked, or write to meanwhile."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from aetherscale import filecopy
from aetherscale.kernel.fault import Fault
from tests.support.image_imports import DISK

pytestmark = pytest.mark.integration


class TestCopy:
    def open_both(self, tmp_path: Path, source: Path) -> tuple[int, int]:
        return os.open(source, os.O_RDONLY), os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT, 0o600)

    @pytest.mark.parametrize("byte", [101, 103])
    def test_a_file_that_a_qemu_has_locked_for_writing_is_refused(self, tmp_path: Path, byte: int) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        holder = os.open(source, os.O_RDONLY)
        lock = filecopy._FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
        original, target = self.open_both(tmp_path, source)
        with pytest.raises(Fault, match="has locked it"):
            filecopy.copy(original, target, lambda done, total: None)
        os.close(holder)
        assert filecopy.copy(original, target, lambda done, total: None) == len(DISK)

    def test_a_qemu_that_only_reads_is_no_matter(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        holder = os.open(source, os.O_RDONLY)
        for byte in (100, 201, 203):
            lock = filecopy._FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
        assert filecopy.copy(*self.open_both(tmp_path, source), lambda done, total: None) == len(DISK)

    def test_a_file_that_is_open_for_writing_is_refused_until_it_is_closed(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        original, target = self.open_both(tmp_path, source)
        with source.open("ab"), pytest.raises(Fault, match="open for writing"):
            filecopy.copy(original, target, lambda done, total: None)
        assert filecopy.copy(original, target, lambda done, total: None) == len(DISK)

    @pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
    def test_a_file_that_changes_meanwhile_is_refused(self, tmp_path: Path, change: str) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        original, target = self.open_both(tmp_path, source)

        def meddle(done: int, total: int) -> None:
            with source.open("r+b") as file:
                if change == "rewrite":
                    file.write(b"x")
                    file.flush()
                    os.utime(source, ns=(1, 1))
                else:
                    file.truncate(len(DISK) + (1 if change == "grow" else -1))

        with pytest.raises(Fault, match="another program is writing to the file"):
            filecopy.copy(original, target, meddle)

    @pytest.mark.parametrize("more", [0, 4096])
    def test_a_file_that_is_mostly_hole_is_refused_at_once(self, tmp_path: Path, more: int) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        data = source.stat().st_blocks * 512
        os.truncate(source, filecopy.MOST_HOLES_BYTES + data + more)
        original, target = self.open_both(tmp_path, source)
        if more:
            with pytest.raises(Fault, match=f"it has {filecopy.MOST_HOLES_BYTES + 4096} bytes of holes"):
                filecopy.copy(original, target, lambda done, total: None)
        else:
            assert filecopy.copy(original, target, lambda done, total: None) == source.stat().st_size
            assert os.fstat(target).st_blocks * 512 < 2 * len(DISK)
