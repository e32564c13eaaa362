"""A store of JetStream that cannot be used is named, and one that is damaged is kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aetherscale.bus import jetstore


def test_a_store_that_can_be_written_is_in_nobodys_way(tmp_path: Path) -> None:
    store = tmp_path / "jetstream"
    assert jetstore.obstacle(store) == ""
    store.mkdir()
    assert jetstore.obstacle(store) == ""
    assert list(store.iterdir()) == []
    assert [each.name for each in tmp_path.iterdir()] == ["jetstream"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_the_host_says_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    assert jetstore.obstacle(tmp_path) == f"{tmp_path} cannot be written: {os.strerror(number)}"
    assert list(tmp_path.iterdir()) == []


def test_damaged_stores_are_kept_and_after_the_third_a_human_has_to_look(tmp_path: Path) -> None:
    store = tmp_path / "jetstream"
    for number in range(1, jetstore.MAX_ASIDE + 1):
        store.write_text(f"{number}")
        assert jetstore.put_aside(store) == tmp_path / f"jetstream.broken-{number}"
    store.write_text("one more")
    assert jetstore.put_aside(store) is None
    assert store.read_text() == "one more"
    assert [(tmp_path / f"jetstream.broken-{number}").read_text() for number in (1, 2, 3)] == ["1", "2", "3"]


def test_what_cannot_be_moved_stays(tmp_path: Path) -> None:
    assert jetstore.put_aside(tmp_path / "nothing") is None
