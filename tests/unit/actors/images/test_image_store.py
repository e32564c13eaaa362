"""The files of images: one for each content, whatever has it, and none that nothing has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aetherscale.actors.images.store import KEPT_S, Store

OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    directory = tmp_path / "images"
    directory.mkdir(mode=0o700)
    return Store(directory)


def put(store: Store, image_id: str, content: bytes, sha256: str, image_format: str = "raw") -> Path:
    part = store.part(image_id)
    part.write_bytes(content)
    store.put(part, image_id, image_format, sha256)
    return store.directory / f"{image_id}.{image_format}"


def names(store: Store) -> set[str]:
    return {str(path.relative_to(store.directory)) for path in store.directory.rglob("*") if path.is_file()}


def test_two_images_of_one_content_are_one_file(store: Store) -> None:
    one, two = put(store, "1", b"x", OLD), put(store, "2", b"x", OLD)
    assert os.path.samefile(one, two)
    assert names(store) == {"1.raw", "2.raw", f"content/{OLD}.raw"}
    store.remove("1")
    assert two.read_bytes() == b"x"
    store.remove("2")
    assert names(store) == set()


def test_what_a_vm_has_a_link_to_is_one_file_with_the_next_import_too(store: Store, tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    os.link(put(store, "1", b"x", OLD), base)
    store.remove("1")
    assert names(store) == {f"content/{OLD}.raw"}
    assert os.path.samefile(put(store, "2", b"x", OLD), base)


def test_a_damaged_file_of_that_content_is_not_taken_for_it(store: Store) -> None:
    content = store.directory / "content" / f"{OLD}.raw"
    put(store, "1", b"x", OLD)
    content.chmod(0o600)
    content.write_bytes(b"")
    assert put(store, "2", b"x", OLD).read_bytes() == b"x"
    assert content.read_bytes() == b"x"


def test_what_an_update_replaced_is_there_for_an_hour(store: Store) -> None:
    put(store, "1", b"old", OLD, "qcow2")
    put(store, "1", b"new", NEW, "raw")
    assert names(store) == {"1.raw", f"content/{OLD}.qcow2", f"content/{NEW}.raw"}
    assert store.path("1", "qcow2", OLD).read_bytes() == b"old"
    assert store.path("1", "raw", NEW).read_bytes() == b"new"
    gone_s = (store.directory / "content" / f"{OLD}.qcow2").stat().st_ctime
    store.sweep(gone_s + KEPT_S - 1)
    assert store.path("1", "qcow2", OLD).exists()
    store.sweep(gone_s + KEPT_S + 1)
    assert names(store) == {"1.raw", f"content/{NEW}.raw"}


def test_an_image_of_an_older_version_is_found_by_its_name(store: Store) -> None:
    path = store.directory / "1.raw"
    path.write_bytes(b"x")
    assert store.path("1", "raw", OLD) == path
    assert store.stored("1") == path


def test_an_update_to_the_same_content_changes_nothing(store: Store) -> None:
    put(store, "1", b"x", OLD)
    assert put(store, "1", b"x", OLD).read_bytes() == b"x"
    assert names(store) == {"1.raw", f"content/{OLD}.raw"}


def test_where_files_have_no_second_name_an_image_is_stored_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)  # as on a file system without hard links
    assert put(store, "1", b"x", OLD).read_bytes() == b"x"
    assert names(store) == {"1.raw"}
