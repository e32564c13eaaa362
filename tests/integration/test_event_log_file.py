"""The log as a file among others: readers, locks, foreign files, writers that are killed, disks that fail."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from aetherscale.eventstore.integrity import verify
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.store import (
    Locked,
    NotALog,
    StoreError,
    TooNew,
    WrongNode,
)
from aetherscale.eventstore.transfer import export
from tests.support.event_logs import (
    EPOCH,
    NODE,
    NOW_US,
    SqliteWorld,
    append_of,
    files_of,
    filled,
    new,
    open_reader,
    read_all,
    write,
)

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0

# A mount namespace needs root, or a user namespace, which is not to be had inside a chroot.
UNSHARE = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--mount")


@pytest.fixture
def world(tmp_path: Path) -> SqliteWorld:
    return SqliteWorld(tmp_path)


# --- files -----------------------------------------------------------------------------------------------------------


async def test_a_tidy_close_leaves_one_checkpointed_file_and_the_small_ones_beside_it(world: SqliteWorld) -> None:
    store = await filled(world)
    await store.close()

    names = {entry.name for entry in world.path.parent.iterdir()}
    assert names == {"events.db", "events.head", "events.lock", "events.reserve"}
    with closing(sqlite3.connect(f"file:{world.path}?immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (6,)


async def test_a_tidy_close_checkpoints_beside_a_reader_that_stays(world: SqliteWorld) -> None:
    store = await filled(world)
    reader = await open_reader(world.path)
    assert len(await reader.read(0)) == 6
    await store.close()

    with closing(sqlite3.connect(f"file:{world.path}?immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (6,)
    assert world.path.with_name("events.db-wal").stat().st_size == 0
    assert len(await reader.read(0)) == 6
    await reader.close()


async def test_nobody_else_may_read_the_log(world: SqliteWorld) -> None:
    store = await filled(world)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in world.path.parent.iterdir()}
    await store.close()

    assert set(modes.values()) == {0o600}, modes


async def test_the_file_refuses_to_be_changed_by_hand(world: SqliteWorld) -> None:
    await (await filled(world)).close()

    with closing(sqlite3.connect(world.path)) as connection:
        for table in ("events", "streams", "types", "commands", "batches", "epochs"):
            column = connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchone()[0]
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names from above
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                connection.execute(f"UPDATE {table} SET {column} = {column}")  # noqa: S608 - names from above


async def test_the_file_refuses_values_of_another_kind(world: SqliteWorld) -> None:
    await (await filled(world)).close()

    with closing(sqlite3.connect(world.path)) as connection, pytest.raises(sqlite3.IntegrityError, match="store TEXT"):
        connection.execute("INSERT INTO batches VALUES (99, 'many', x'00')")


# --- readers beside the node -----------------------------------------------------------------------------------------


async def test_a_reader_sees_what_another_process_writes(world: SqliteWorld) -> None:
    store = await filled(world)
    reader = await open_reader(world.path)
    try:
        assert (reader.node, reader.epoch, await reader.head()) == (NODE, EPOCH, 6)
        async with asyncio.timeout(WAIT_S):
            pages = reader.subscribe(4)
            assert [event.seq for event in await anext(pages)] == [5, 6]
            coming = asyncio.ensure_future(anext(pages))
            await store.append(append_of(write("vm-new", 0, new("OfAnUnknownType"))))
            assert [event.type for event in await coming] == ["OfAnUnknownType"]
            await pages.aclose()
    finally:
        await reader.close()
        await store.close()


async def test_a_reader_needs_no_node_and_changes_nothing(world: SqliteWorld) -> None:
    store = await filled(world)
    events = await read_all(store)
    await store.close()
    before = files_of(world.path.parent)

    reader = await open_reader(world.path)
    assert await read_all(reader) == events
    assert await reader.accepted("default", "command-1") is not None
    await reader.close()

    after = files_of(world.path.parent)
    assert {name: after[name] for name in before} == before


async def test_a_reader_finds_what_a_killed_node_left_in_the_write_ahead_log(
    world: SqliteWorld, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = await filled(world)
    elsewhere = tmp_path_factory.mktemp("crashed")
    for name in ("events.db", "events.db-wal", "events.head"):
        shutil.copy(world.path.with_name(name), elsewhere)
    events = await read_all(store)
    await store.close()

    reader = await open_reader(elsewhere / "events.db")
    assert await read_all(reader) == events
    await reader.close()


async def test_a_node_goes_on_beside_a_reader_that_stays(world: SqliteWorld) -> None:
    store = await filled(world)
    reader = await open_reader(world.path)
    await store.close()
    store = await filled(world)
    assert await reader.head() == 12
    await store.close()
    await reader.close()
    assert verify(world.path).problems == ()


async def test_a_log_is_found_whole_in_the_midst_of_commits(world: SqliteWorld) -> None:
    """Opened, verified and exported again and again while another process writes."""
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.log_writer", str(world.path), "4", "run"),
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert writer.stdout is not None
        async with asyncio.timeout(WAIT_S):
            await writer.stdout.readline()
            for _ in range(60):
                reader = await open_reader(world.path)
                await reader.close()
                await writer.stdout.read(65536)
            for _ in range(8):
                await writer.stdout.read(65536)
                assert verify(world.path).problems == ()
                assert export(world.path, lambda line: None).damage is None
    finally:
        writer.kill()
        await writer.wait()


# --- one writer ------------------------------------------------------------------------------------------------------


async def test_a_second_writer_is_told_who_the_first_one_is(world: SqliteWorld) -> None:
    store = await world.open()
    with pytest.raises(Locked, match=f"pid {os.getpid()}"):
        await world.open()
    await store.close()


async def test_no_child_process_keeps_the_lock(world: SqliteWorld) -> None:
    store = await world.open()
    child = await asyncio.create_subprocess_exec("sleep", "60", close_fds=False)
    try:
        await store.close()
        await (await world.open()).close()
    finally:
        child.kill()
        await child.wait()


# --- files that are no log of ours -----------------------------------------------------------------------------------


async def both_refuse(world: SqliteWorld, kind: type[StoreError], match: str) -> None:
    before = files_of(world.path.parent)
    with pytest.raises(kind, match=match):
        await open_reader(world.path)
    with pytest.raises(kind, match=match):
        await world.open()
    after = files_of(world.path.parent)
    assert {name: after[name] for name in before} == before


async def test_a_file_that_is_no_database_is_left_alone(world: SqliteWorld) -> None:
    world.path.write_bytes(b"Dear diary, " * 1000)
    await both_refuse(world, NotALog, "not an event log")


async def test_a_database_of_somebody_else_is_left_alone(world: SqliteWorld) -> None:
    with closing(sqlite3.connect(world.path)) as connection:
        connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY)")
    await both_refuse(world, NotALog, "not an event log")


async def test_a_log_of_a_newer_version_is_left_alone(world: SqliteWorld) -> None:
    await (await filled(world)).close()
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 3")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA journal_mode = WAL")
    await both_refuse(world, TooNew, "schema 3")


async def test_the_log_of_another_node_is_not_served(world: SqliteWorld) -> None:
    await (await filled(world)).close()
    with pytest.raises(WrongNode, match="--node host1"):
        await open_store(world.path, node="host2", epoch=EPOCH, now_us=NOW_US)


async def test_where_there_is_no_log_a_reader_says_so_and_makes_none(world: SqliteWorld) -> None:
    with pytest.raises(NotALog, match="no event log here"):
        await open_reader(world.path)
    assert list(world.path.parent.iterdir()) == []


async def test_a_log_that_was_not_made_to_its_end_is_made_anew(world: SqliteWorld) -> None:
    world.path.with_name("events.db.new").write_bytes(b"half of it")
    world.path.with_name("events.db.new-wal").write_bytes(b"and half of that")
    store = await filled(world)
    assert await store.head() == 6
    await store.close()
    assert not list(world.path.parent.glob("*.new*"))


# --- processes that die, disks that fail -----------------------------------------------------------------------------


async def test_what_was_acknowledged_before_a_kill_is_there_exactly_once(world: SqliteWorld) -> None:
    """Three rounds on one log, each killed in the middle of its work."""
    acknowledged: list[str] = []
    for run in range(3):
        writer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.log_writer", str(world.path), "8", f"run{run}"),
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert writer.stdout is not None
        async with asyncio.timeout(WAIT_S):
            for _ in range(300):
                acknowledged.append((await writer.stdout.readline()).decode().strip())
            writer.send_signal(signal.SIGKILL)
            acknowledged.extend((await writer.stdout.read()).decode().splitlines())
            await writer.wait()

    found = verify(world.path)
    assert found.problems == ()
    store = await world.open()
    written = [event.command_id for event in await read_all(store)]
    for command in acknowledged:
        accepted = await store.accepted("default", command)
        assert accepted is not None
        assert [event.command_id for event in await store.read(accepted.first_seq - 1, 2)] == [command, command]
    await store.close()
    assert len(set(acknowledged)) == len(acknowledged) >= 900
    assert {command: written.count(command) for command in set(written)} == dict.fromkeys(written, 2)


def in_a_process(case: str, directory: Path, *wrapper: str) -> None:
    """Play a case of `log_faults`, in a namespace of its own where a wrapper says so."""
    played = subprocess.run(
        [*wrapper, sys.executable, "-m", "tests.support.log_faults", case, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert played.returncode == 0, played.stdout + played.stderr


def on_a_small_disk(directory: Path) -> tuple[str, ...]:
    """Two mebibytes in memory, mounted over the directory where nobody else sees it; unshare(1)."""
    mount = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'
    return (*UNSHARE, "sh", "-c", mount, str(directory))


def test_a_commit_that_cannot_be_synced_is_in_doubt(tmp_path: Path) -> None:
    in_a_process("a_commit_that_cannot_be_synced_is_in_doubt", tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        "a_full_disk_refuses_and_loses_nothing",
        "a_node_can_be_started_on_a_full_disk",
        "a_node_whose_disk_filled_up_can_be_started_again",
    ],
)
def test_on_a_full_disk(tmp_path: Path, case: str) -> None:
    in_a_process(case, tmp_path, *on_a_small_disk(tmp_path))


async def test_a_log_on_a_read_only_disk_can_be_read(world: SqliteWorld) -> None:
    await (await filled(world)).close()
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    directory = world.path.parent
    in_a_process(
        "a_log_on_a_read_only_disk_can_be_read",
        directory,
        *(*UNSHARE, "sh", "-c", mount, str(directory)),
    )
