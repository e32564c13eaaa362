"""Where snapshots are kept: the fake in memory and the real file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from aetherscale.eventstore.projections import MemorySnapshots, Snapshot, SnapshotStore
from aetherscale.eventstore.sqlite.snapshots import SqliteSnapshots

Open = Callable[[], Awaitable[SnapshotStore]]


@pytest.fixture(params=["memory", "sqlite"])
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SnapshotStore]:
    opened = MemorySnapshots() if request.param == "memory" else await SqliteSnapshots.open(tmp_path / "snapshots.db")
    yield opened
    await opened.close()


def snapshot(position: int) -> Snapshot:
    return Snapshot(position, b"state at %d" % position)


async def test_there_is_nothing_at_first(kept: SnapshotStore) -> None:
    assert list(await kept.snapshots("vms", "f1", "e1")) == []


async def test_the_two_newest_are_kept_the_newest_first(kept: SnapshotStore) -> None:
    for position in (10, 20, 30):
        await kept.save("vms", "f1", "e1", snapshot(position))
    assert list(await kept.snapshots("vms", "f1", "e1")) == [snapshot(30), snapshot(20)]


async def test_projections_do_not_push_out_one_another(kept: SnapshotStore) -> None:
    for position in (10, 20, 30):
        await kept.save("vms", "f1", "e1", snapshot(position))
        await kept.save("images", "f2", "e1", snapshot(position + 1))
    assert list(await kept.snapshots("vms", "f1", "e1")) == [snapshot(30), snapshot(20)]
    assert list(await kept.snapshots("images", "f2", "e1")) == [snapshot(31), snapshot(21)]


async def test_a_new_shape_sees_none_of_the_old_which_stay_until_it_is_saved(kept: SnapshotStore) -> None:
    await kept.save("vms", "f1", "e1", snapshot(10))
    await kept.save("vms", "f1", "e1", snapshot(20))
    assert list(await kept.snapshots("vms", "f2", "e1")) == []
    assert list(await kept.snapshots("vms", "f1", "e1")) == [snapshot(20), snapshot(10)]

    await kept.save("vms", "f2", "e1", snapshot(5))
    assert list(await kept.snapshots("vms", "f2", "e1")) == [snapshot(5)]
    assert list(await kept.snapshots("vms", "f1", "e1")) == []


async def test_snapshots_of_another_log_are_not_seen_and_make_room(kept: SnapshotStore) -> None:
    await kept.save("vms", "f1", "e1", snapshot(90))
    assert list(await kept.snapshots("vms", "f1", "e2")) == []
    await kept.save("vms", "f1", "e2", snapshot(10))
    await kept.save("vms", "f1", "e2", snapshot(20))
    assert list(await kept.snapshots("vms", "f1", "e2")) == [snapshot(20), snapshot(10)]
    assert list(await kept.snapshots("vms", "f1", "e1")) == []


async def test_a_snapshot_ends_those_that_claim_to_be_of_its_position_or_later(kept: SnapshotStore) -> None:
    await kept.save("vms", "f1", "e1", snapshot(10))
    await kept.save("vms", "f1", "e1", snapshot(20))
    await kept.save("vms", "f1", "e1", Snapshot(20, b"another"))
    assert list(await kept.snapshots("vms", "f1", "e1")) == [Snapshot(20, b"another"), snapshot(10)]
    await kept.save("vms", "f1", "e1", snapshot(15))
    assert list(await kept.snapshots("vms", "f1", "e1")) == [snapshot(15), snapshot(10)]


# --- the file ---------------------------------------------------------------------------------------------------------


async def saved(path: Path, *positions: int) -> None:
    kept = await SqliteSnapshots.open(path)
    for position in positions:
        await kept.save("vms", "f1", "e1", snapshot(position))
    await kept.close()


async def kept_in(path: Path) -> list[Snapshot]:
    kept = await SqliteSnapshots.open(path)
    try:
        return list(await kept.snapshots("vms", "f1", "e1"))
    finally:
        await kept.close()


async def test_the_file_keeps_them_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.db"
    await saved(path, 10, 20)
    assert path.stat().st_mode & 0o777 == 0o600
    assert await kept_in(path) == [snapshot(20), snapshot(10)]


async def test_a_changed_snapshot_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "snapshots.db"
    await saved(path, 10, 20)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE snapshots SET state = x'00' WHERE position = 20")
        connection.commit()
    assert await kept_in(path) == [snapshot(10)]
    assert "1 snapshots of vms are damaged" in caplog.text

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE snapshots SET position = 11 WHERE position = 10")
        connection.commit()
    assert await kept_in(path) == []


@pytest.mark.parametrize("content", [b"", b"Dear diary, " * 1000, None], ids=["empty", "foreign", "torn"])
async def test_a_file_that_is_broken_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "snapshots.db"
    await saved(path, 10)
    if content is None:
        raw = bytearray(path.read_bytes())
        raw[100:2000] = b"\xff" * 1900
        content = bytes(raw)
    path.write_bytes(content)
    assert await kept_in(path) == []
    await saved(path, 30)
    assert await kept_in(path) == [snapshot(30)]


async def test_a_file_of_another_version_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "snapshots.db"
    await saved(path, 10)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert await kept_in(path) == []


async def test_the_file_of_the_former_name_is_removed_with_what_is_beside_it(tmp_path: Path) -> None:
    former = [tmp_path / f"views.db{suffix}" for suffix in ("", "-wal", "-shm")]
    for path in former:
        path.write_bytes(b"of version 0.1")
    (tmp_path / "views.dbx").write_bytes(b"somebody's")
    kept = await SqliteSnapshots.open(tmp_path / "snapshots.db")
    await kept.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshots.db", "views.dbx"]


async def test_what_only_bears_the_former_name_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"somebody's")
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    (directory / "views.db").symlink_to(elsewhere)
    (directory / "views.db-wal").mkdir()
    kept = await SqliteSnapshots.open(directory / "snapshots.db")
    await kept.close()
    assert elsewhere.read_bytes() == b"somebody's"
    assert sorted(path.name for path in directory.iterdir()) == ["snapshots.db", "views.db", "views.db-wal"]
