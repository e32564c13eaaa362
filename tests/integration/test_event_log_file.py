"""The log as a file among others: killed writers, flipped bits, full disks, foreign files, locks."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from aetherscale.eventstore.integrity import verify
from aetherscale.eventstore.sqlite import open_reader, open_store
from aetherscale.eventstore.store import (
    Damaged,
    Locked,
    NotALog,
    Reader,
    Store,
    StoredEvent,
    StoreError,
    TooNew,
    WrongNode,
)
from tests.support.event_logs import (
    EPOCH,
    NODE,
    NOW_US,
    SqliteWorld,
    append_of,
    digest_of,
    new,
    read_all,
    write,
)

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0


@pytest.fixture
def world(tmp_path: Path) -> SqliteWorld:
    return SqliteWorld(tmp_path)


async def filled(world: SqliteWorld, commits: int = 3) -> Store:
    """An open log with as many commits, each of two events and a command."""
    store = await world.open()
    head = await store.head()
    for number in range(head, head + commits):
        await store.append(
            append_of(
                write(f"vm-{number}", 0, new("Made", bytes(range(200)))),
                write("vm-common", await version_of(store, "vm-common"), new("Grown")),
                command_id=f"command-{number}",
                body=f"body-{number}",
            )
        )
    return store


async def version_of(store: Reader, stream: str) -> int:
    return len(await store.read_stream(stream))


def files_of(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


# --- files -----------------------------------------------------------------------------------------------------------


async def test_a_tidy_close_leaves_one_checkpointed_file_and_the_small_ones_beside_it(world: SqliteWorld) -> None:
    store = await filled(world)
    await store.close()

    names = {entry.name for entry in world.path.parent.iterdir()}
    assert names == {"events.db", "events.head", "events.lock", "events.reserve"}
    with closing(sqlite3.connect(f"file:{world.path}?immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (6,)


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
        connection.execute("PRAGMA user_version = 2")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA journal_mode = WAL")
    await both_refuse(world, TooNew, "schema 2")


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


# --- damage ----------------------------------------------------------------------------------------------------------


async def crashed_log(directory: Path) -> tuple[Path, list[StoredEvent]]:
    """A log as kill -9 leaves it: most commits in the database, some in the write-ahead log, and a head."""
    world = SqliteWorld(directory / "running")
    world.path.parent.mkdir()
    await (await filled(world, 60)).close()
    store = await filled(world, 3)
    crashed = directory / "crashed"
    crashed.mkdir()
    for name in ("events.db", "events.db-wal", "events.head"):
        shutil.copy(world.path.with_name(name), crashed)
    events = await read_all(store)
    await store.close()
    return crashed / "events.db", events


async def told_of_damage(path: Path, events: Sequence[StoredEvent]) -> bool:
    """Whether damage shows when the log is opened, read or verified. Fails where what is read is silently wrong."""
    try:
        reader = await open_reader(path)
    except StoreError:
        return True
    try:
        found = await read_all(reader)
        for number in (0, 30, 61):
            accepted = await reader.accepted("default", f"command-{number}")
            if accepted is not None:
                assert accepted.digest == digest_of(f"body-{number}") or verify(path).problems
    except StoreError:
        return True
    finally:
        await reader.close()
    if verify(path).problems:
        return True
    assert found == events, "what is read is not what was written, and nothing shows it"
    return False


@pytest.mark.parametrize("part", ["events.db", "events.db-wal", "events.head"])
async def test_a_flipped_bit_is_seen_or_changes_nothing(tmp_path: Path, part: str) -> None:
    path, events = await crashed_log(tmp_path)
    victim = path.with_name(part)
    whole = {name: path.with_name(name).read_bytes() for name in ("events.db", "events.db-wal", "events.head")}
    assert not await told_of_damage(path, events), "the log is whole before it is damaged"
    chance = random.Random(part)  # noqa: S311 - the same flips in every run
    seen = 0
    for _ in range(150):
        for name, content in whole.items():
            path.with_name(name).write_bytes(content)
        path.with_name("events.db-shm").unlink(missing_ok=True)
        flipped = bytearray(whole[part])
        place = chance.randrange(len(flipped))
        flipped[place] ^= 1 << chance.randrange(8)
        victim.write_bytes(flipped)
        seen += await told_of_damage(path, events)
    assert seen > 30, "much of the database stands in the write-ahead log too, or is empty, but not all"


@pytest.mark.parametrize("part", ["events.db", "events.db-wal", "events.head"])
async def test_a_file_that_is_cut_off_or_gone_is_seen(tmp_path: Path, part: str) -> None:
    path, events = await crashed_log(tmp_path)
    victim = path.with_name(part)
    whole = {name: path.with_name(name).read_bytes() for name in ("events.db", "events.db-wal", "events.head")}
    size = len(whole[part])
    seen = 0
    for length in [*range(0, size, size // 20), size - 1]:
        for name, content in whole.items():
            path.with_name(name).write_bytes(content)
        path.with_name("events.db-shm").unlink(missing_ok=True)
        victim.write_bytes(whole[part][:length])
        seen += await told_of_damage(path, events)
    assert seen > 15, "what is cut off may stand in the write-ahead log too, but not often"
    victim.unlink()
    path.with_name("events.db-shm").unlink(missing_ok=True)
    assert await told_of_damage(path, events), f"without {part}"


async def test_a_node_does_not_touch_a_log_that_has_lost_its_end(tmp_path: Path) -> None:
    path, events = await crashed_log(tmp_path)
    wal = path.with_name("events.db-wal")
    content = bytearray(wal.read_bytes())
    content[len(content) // 2] ^= 1
    wal.write_bytes(content)
    before = files_of(path.parent)

    with pytest.raises(Damaged, match=r"log damaged at \d+.*aetherscale log verify") as damaged:
        await open_store(path, node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=0)

    assert damaged.value.seq is not None
    assert 1 < damaged.value.seq <= len(events)
    after = files_of(path.parent)
    assert {name: after[name] for name in before} == before, "what could still be saved has been changed"


async def test_a_lost_database_is_not_replaced_by_an_empty_one(world: SqliteWorld) -> None:
    await (await filled(world)).close()
    world.path.unlink()
    with pytest.raises(Damaged, match="missing"):
        await world.open()
    assert not world.path.exists()


async def test_a_missing_event_is_seen_when_it_is_read(world: SqliteWorld) -> None:
    await (await filled(world)).close()
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER events_stay")
        connection.execute("DELETE FROM events WHERE seq = 4")

    reader = await open_reader(world.path)
    with pytest.raises(Damaged, match="event 4 is missing") as damaged:
        await reader.read(0)
    await reader.close()
    assert damaged.value.seq == 4
    assert verify(world.path).problems[0].seq == 3, "the commit that event 4 was in begins at 3"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET data = x'80' WHERE seq = 3",
        "UPDATE events SET time_us = time_us + 1 WHERE seq = 3",
        "UPDATE events SET actor = 'user:somebody-else' WHERE seq = 3",
        "UPDATE streams SET name = 'vm-other' WHERE id = 2",
        "UPDATE types SET name = 'Unmade' WHERE id = 1",
        "UPDATE commands SET digest = x'00' WHERE first_seq = 3",
        "UPDATE commands SET last_seq = 5 WHERE first_seq = 3",
        "DELETE FROM commands WHERE first_seq = 3",
        "UPDATE epochs SET epoch = 'ffffffffffffffff'",
        "UPDATE batches SET link = zeroblob(32) WHERE number = 2",
        "DELETE FROM batches WHERE number = 2",
    ],
)
async def test_a_change_of_the_past_breaks_the_chain(world: SqliteWorld, change: str) -> None:
    await (await filled(world)).close()
    assert verify(world.path).problems == ()
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        assert connection.execute(change).rowcount == 1

    found = verify(world.path)
    assert found.problems
    assert found.events <= 2


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
    return ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(directory))


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
        *("unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(directory)),
    )
