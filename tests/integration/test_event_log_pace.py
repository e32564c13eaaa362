"""Where a commit is done, in the loop or in a thread, and the room that it writes to."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.integrity import verify
from aetherscale.eventstore.sqlite import opening, pace, walroom
from aetherscale.eventstore.sqlite.connection import Connection, connect
from aetherscale.eventstore.sqlite.pace import FEW_BYTES, FEW_EVENTS, PROVEN, QUICK_S, Pace
from aetherscale.eventstore.sqlite.store import SqliteBackend
from aetherscale.eventstore.sqlite.walroom import FRAME_BYTES, HEADER_BYTES, LEAST_BYTES, STEP_BYTES, WalRoom
from aetherscale.eventstore.sqlite.writing import LogWriting
from aetherscale.eventstore.store import Append, InDoubt
from tests.support.event_logs import SqliteWorld, append_of, files_of, new, read_all, write

SMALL = [append_of(write("vm-1", 0))]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LogStore]:
    opened = await SqliteWorld(tmp_path).open()
    yield opened
    await opened.close()


# --- where a commit is done ------------------------------------------------------------------------------------------


def proven() -> Pace:
    quick = Pace()
    for _ in range(PROVEN):
        quick.took(QUICK_S)
    return quick


def test_a_disk_is_quick_once_it_has_been_so_many_times_in_a_row_and_until_it_is_slow_once() -> None:
    quick = Pace()
    for _ in range(PROVEN):
        assert not quick.may_wait(SMALL)
        quick.took(QUICK_S)
    assert quick.may_wait(SMALL)
    quick.took(QUICK_S * 1.01)
    assert not quick.may_wait(SMALL)
    for _ in range(PROVEN):
        assert not quick.may_wait(SMALL)
        quick.took(0)
    assert quick.may_wait(SMALL)


def test_the_loop_waits_for_one_small_append_alone() -> None:
    assert proven().may_wait([append_of(write("vm-1", 0, *[new()] * FEW_EVENTS))])
    assert proven().may_wait([append_of(write("vm-1", 0, new(data=bytes(FEW_BYTES))))])
    assert not proven().may_wait(SMALL * 2)
    assert not proven().may_wait([append_of(write("vm-1", 0, *[new()] * FEW_EVENTS), write("vm-2", 0))])
    assert not proven().may_wait([append_of(write("vm-1", 0, new(data=bytes(FEW_BYTES)), new(data=b"x")))])


@pytest.mark.parametrize(("quick_s", "in_the_loop"), [(float("inf"), True), (-1.0, False)])
async def test_the_loop_commits_itself_where_the_disk_is_quick(
    store: LogStore, monkeypatch: pytest.MonkeyPatch, quick_s: float, in_the_loop: bool
) -> None:
    monkeypatch.setattr(pace, "QUICK_S", quick_s)
    threads: list[int] = []
    commit = LogWriting.commit

    def noting(self: LogWriting, appends: Sequence[Append]) -> Sequence[Outcome]:
        threads.append(threading.get_ident())
        return commit(self, appends)

    monkeypatch.setattr(LogWriting, "commit", noting)
    for version in range(PROVEN + 3):
        await store.append(append_of(write("vm-1", version)))
    await asyncio.gather(*(store.append(append_of(write(f"vm-{number}", 0))) for number in range(2, 5)))
    ours = [thread == threading.get_ident() for thread in threads]
    assert ours == [False] * PROVEN + [in_the_loop] * 3 + [False]
    assert [event.version for event in await store.read_stream("vm-1")] == list(range(1, PROVEN + 4))


async def test_what_is_ready_does_not_wait_for_a_commit_in_the_loop(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "QUICK_S", float("inf"))
    order: list[str] = []
    commit = LogWriting.commit

    def noting(self: LogWriting, appends: Sequence[Append]) -> Sequence[Outcome]:
        order.append("committed")
        return commit(self, appends)

    monkeypatch.setattr(LogWriting, "commit", noting)
    assert isinstance(store.access, SqliteBackend)
    for version in range(PROVEN + 1):
        order.clear()
        asyncio.get_running_loop().call_soon(order.append, "ready")
        await store.access.commit([append_of(write("vm-1", version))])
    assert order == ["ready", "committed"]


async def test_a_connection_is_not_idle_while_a_call_that_was_cancelled_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    connection = await Connection.open(lambda: connect(path, "rwc", any_thread=True), path)
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()

    running = asyncio.ensure_future(connection.run(work))
    await asyncio.to_thread(begun.wait)
    running.cancel()
    await asyncio.wait({running})
    idle = [connection.is_idle]
    go_on.set()
    await connection.run(lambda: None)
    assert [*idle, connection.is_idle] == [False, True]
    assert connection.run_here(lambda: connection.plain.execute("SELECT 7").fetchone()) == (7,)
    await connection.close()


# --- the room that it writes to --------------------------------------------------------------------------------------


def wal_of(world: SqliteWorld) -> Path:
    return world.path.with_name(f"{world.path.name}-wal")


async def test_room_is_made_after_the_frames_and_what_is_committed_stays(tmp_path: Path) -> None:
    world = SqliteWorld(tmp_path / "log")
    world.path.parent.mkdir(mode=0o700)
    store = await world.open()
    for version in range(3):
        await store.append(append_of(write("vm-1", version)))
    before = wal_of(world).read_bytes()
    room = WalRoom(world.path)
    room.make()
    assert wal_of(world).read_bytes() == before + bytes(STEP_BYTES)
    room.make()
    assert wal_of(world).stat().st_size == len(before) + STEP_BYTES, "there is enough"
    for version in range(3, 6):
        await store.append(append_of(write("vm-1", version)))
    assert wal_of(world).stat().st_size == len(before) + STEP_BYTES, "they were written over the zeros"

    killed = SqliteWorld(tmp_path / "killed")
    killed.path.parent.mkdir(mode=0o700)
    for name, content in files_of(world.path.parent).items():
        (killed.path.parent / name).write_bytes(content)
    events = await read_all(store)
    await store.close()
    assert not wal_of(world).exists()
    again = await killed.open()
    assert await read_all(again) == events
    await again.append(append_of(write("vm-1", 6)))
    await again.close()
    found = verify(killed.path)
    assert (found.events, found.problems) == (7, ())


def frames(path: Path, written: int, size: int) -> WalRoom:
    """The room of a log whose write-ahead log has so many frames, and then zeros."""
    log = path / "events.db"
    frame = b"\x00\x00\x00\x07" + bytes(FRAME_BYTES - 4)
    log.with_name("events.db-wal").write_bytes((b"h" * HEADER_BYTES + frame * written).ljust(size, b"\x00"))
    return WalRoom(log)


@pytest.mark.parametrize("left", [LEAST_BYTES - 1, LEAST_BYTES])
def test_more_room_is_made_where_too_little_is_left(tmp_path: Path, left: int) -> None:
    size = HEADER_BYTES + 50 * FRAME_BYTES + left
    frames(tmp_path, 50, size).make()
    made = (tmp_path / "events.db-wal").stat().st_size - size
    assert made == (STEP_BYTES if left < LEAST_BYTES else 0)


def test_no_room_is_made_once_sqlite_writes_over_old_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "WAL_AUTOCHECKPOINT_PAGES", 50)
    size = HEADER_BYTES + 50 * FRAME_BYTES
    frames(tmp_path, 50, size).make()
    assert (tmp_path / "events.db-wal").stat().st_size == size


def test_no_room_is_made_on_a_disk_that_has_little_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walroom, "FREE_BYTES", 1 << 62)
    frames(tmp_path, 3, HEADER_BYTES + 3 * FRAME_BYTES).make()
    assert (tmp_path / "events.db-wal").stat().st_size == HEADER_BYTES + 3 * FRAME_BYTES


def test_room_that_the_disk_does_not_take_whole_is_given_back(tmp_path: Path) -> None:
    size = HEADER_BYTES + 3 * FRAME_BYTES
    room = frames(tmp_path, 3, size)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + STEP_BYTES // 2, hard))
    try:
        room.make()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "events.db-wal").stat().st_size == size


async def test_room_that_cannot_be_synced_leaves_the_log_in_doubt(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append(append_of(write("vm-1", 0)))

    def fail(*_: Any) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(WalRoom, "make", fail)
    assert isinstance(store.access, SqliteBackend)
    with pytest.raises(InDoubt, match="could not be synced"):
        await store.access.sync_head()
