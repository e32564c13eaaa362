"""Where snapshots are kept: the fake in memory and the real file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from aetherscale.eventstore.projections import MemorySnapshots, Snapshot, Views
from aetherscale.eventstore.sqlite.snapshots import SqliteSnapshots

Open = Callable[[], Awaitable[Views]]


@pytest.fixture(params=["memory", "sqlite"])
async def views(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Views]:
    opened = MemorySnapshots() if request.param == "memory" else await SqliteSnapshots.open(tmp_path / "snapshots.db")
    yield opened
    await opened.close()


def snapshot(position: int) -> Snapshot:
    return Snapshot(position, b"state at %d" % position)


async def test_there_is_nothing_at_first(views: Views) -> None:
    assert list(await views.snapshots("vms", "f1", "e1")) == []


async def test_the_two_newest_are_kept_the_newest_first(views: Views) -> None:
    for position in (10, 20, 30):
        await views.save("vms", "f1", "e1", snapshot(position))
    assert list(await views.snapshots("vms", "f1", "e1")) == [snapshot(30), snapshot(20)]


async def test_projections_do_not_push_out_one_another(views: Views) -> None:
    for position in (10, 20, 30):
        await views.save("vms", "f1", "e1", snapshot(position))
        await views.save("images", "f2", "e1", snapshot(position + 1))
    assert list(await views.snapshots("vms", "f1", "e1")) == [snapshot(30), snapshot(20)]
    assert list(await views.snapshots("images", "f2", "e1")) == [snapshot(31), snapshot(21)]


async def test_a_new_shape_sees_none_of_the_old_which_stay_until_it_is_saved(views: Views) -> None:
    await views.save("vms", "f1", "e1", snapshot(10))
    await views.save("vms", "f1", "e1", snapshot(20))
    assert list(await views.snapshots("vms", "f2", "e1")) == []
    assert list(await views.snapshots("vms", "f1", "e1")) == [snapshot(20), snapshot(10)]

    await views.save("vms", "f2", "e1", snapshot(5))
    assert list(await views.snapshots("vms", "f2", "e1")) == [snapshot(5)]
    assert list(await views.snapshots("vms", "f1", "e1")) == []


async def test_snapshots_of_another_log_are_not_seen_and_make_room(views: Views) -> None:
    await views.save("vms", "f1", "e1", snapshot(90))
    assert list(await views.snapshots("vms", "f1", "e2")) == []
    await views.save("vms", "f1", "e2", snapshot(10))
    await views.save("vms", "f1", "e2", snapshot(20))
    assert list(await views.snapshots("vms", "f1", "e2")) == [snapshot(20), snapshot(10)]
    assert list(await views.snapshots("vms", "f1", "e1")) == []


async def test_a_snapshot_ends_those_that_claim_to_be_of_its_position_or_later(views: Views) -> None:
    await views.save("vms", "f1", "e1", snapshot(10))
    await views.save("vms", "f1", "e1", snapshot(20))
    await views.save("vms", "f1", "e1", Snapshot(20, b"another"))
    assert list(await views.snapshots("vms", "f1", "e1")) == [Snapshot(20, b"another"), snapshot(10)]
    await views.save("vms", "f1", "e1", snapshot(15))
    assert list(await views.snapshots("vms", "f1", "e1")) == [snapshot(15), snapshot(10)]


# --- the file ---------------------------------------------------------------------------------------------------------


async def saved(path: Path, *positions: int) -> None:
    views = await SqliteSnapshots.open(path)
    for position in positions:
        await views.save("vms", "f1", "e1", snapshot(position))
    await views.close()


async def kept(path: Path) -> list[Snapshot]:
    views = await SqliteSnapshots.open(path)
    try:
        return list(await views.snapshots("vms", "f1", "e1"))
    finally:
        await views.close()


async def test_the_file_keeps_them_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.db"
    await saved(path, 10, 20)
    assert path.stat().st_mode & 0o777 == 0o600
    assert await kept(path) == [snapshot(20), snapshot(10)]


async def test_a_changed_snapshot_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "snapshots.db"
    await saved(path, 10, 20)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE snapshots SET state = x'00' WHERE position = 20")
        connection.commit()
    assert await kept(path) == [snapshot(10)]
    assert "1 snapshots of vms are damaged" in caplog.text

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE snapshots SET position = 11 WHERE position = 10")
        connection.commit()
    assert await kept(path) == []


@pytest.mark.parametrize("content", [b"", b"Dear diary, " * 1000, None], ids=["empty", "foreign", "torn"])
async def test_a_file_that_is_broken_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "snapshots.db"
    await saved(path, 10)
    if content is None:
        raw = bytearray(path.read_bytes())
        raw[100:2000] = b"\xff" * 1900
        content = bytes(raw)
    path.write_bytes(content)
    assert await kept(path) == []
    await saved(path, 30)
    assert await kept(path) == [snapshot(30)]


async def test_a_file_of_another_version_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.db"
    await saved(path, 10)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert await kept(path) == []
