"""A damaged log: every flipped bit, every cut and every lost row is seen, or what is read is what was written."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from aetherscale.eventstore.archive import archive
from aetherscale.eventstore.integrity import verify
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.store import Damaged, StoredEvent, StoreError
from aetherscale.eventstore.transfer import export
from tests.support.event_logs import (
    EPOCH,
    NODE,
    NOW_US,
    SqliteWorld,
    append_of,
    digest_of,
    files_of,
    filled,
    new,
    open_reader,
    read_all,
    write,
)


@pytest.fixture
def world(tmp_path: Path) -> SqliteWorld:
    return SqliteWorld(tmp_path)


def make_changeable(connection: sqlite3.Connection) -> None:
    """Take away what keeps the log from being changed by hand."""
    for (trigger,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")


LOG_FILES = ("events.db", "events.db-wal", "events.head")


async def crashed_log(directory: Path, in_the_wal: int = 3, *, sealed: bool = False) -> tuple[Path, list[StoredEvent]]:
    """A log as kill -9 leaves it: most commits in the database, some in the write-ahead log, and a head."""
    world = SqliteWorld(directory / "running")
    world.path.parent.mkdir()
    await (await filled(world, 60)).close()
    if sealed:
        archive(world.path, lambda reading: reading.head() - 6, segment_events=20)
    store = await filled(world, in_the_wal)
    crashed = directory / "crashed"
    crashed.mkdir()
    for name in LOG_FILES:
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


def open_files(directory: Path) -> list[str]:
    """The files of a directory that this process has open."""
    opened = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            opened.append(str(descriptor.readlink()))
    return [name for name in opened if name.startswith(f"{directory}/")]


async def can_be_served(path: Path) -> bool:
    """Whether a node starts on the log and can write to it. Fails where it leaves anything open."""
    try:
        store = await open_store(path, node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=0)
        await store.append(append_of(write("vm-served", 0)))
        await store.close()
    except StoreError:
        return False
    finally:
        assert open_files(path.parent) == []
    return True


@pytest.mark.parametrize(
    ("part", "in_the_wal", "sealed"),
    [
        ("events.db", 0, False),
        ("events.db", 3, False),
        ("events.db", 0, True),
        ("events.db-wal", 3, False),
        ("events.head", 3, False),
    ],
)
async def test_a_flipped_bit_is_seen_or_changes_nothing(
    tmp_path: Path, part: str, in_the_wal: int, sealed: bool
) -> None:
    path, events = await crashed_log(tmp_path, in_the_wal, sealed=sealed)
    victim = path.with_name(part)
    whole = {name: path.with_name(name).read_bytes() for name in LOG_FILES}
    assert not await told_of_damage(path, events), "the log is whole before it is damaged"
    chance = random.Random(part)  # noqa: S311 - the same flips in every run
    seen = 0
    for _ in range(120):
        for name, content in whole.items():
            path.with_name(name).write_bytes(content)
        path.with_name("events.db-shm").unlink(missing_ok=True)
        flipped = bytearray(whole[part])
        size = chance.choice([1, 1, 8])
        place = chance.randrange(chance.choice([len(flipped), min(len(flipped), 4096)]) - size + 1)
        for at in range(place, place + size):
            flipped[at] ^= 1 << chance.randrange(8)
        victim.write_bytes(flipped)
        told = await told_of_damage(path, events)
        assert open_files(path.parent) == [], "what could not be read stays open"
        served = await can_be_served(path)
        assert told or served, "a node does not start on a log that is whole"
        seen += told
    assert seen > 10, "much of the database stands in the write-ahead log too, or is empty, but not all"


@pytest.mark.parametrize("part", LOG_FILES)
async def test_a_file_that_is_cut_off_or_gone_is_seen(tmp_path: Path, part: str) -> None:
    path, events = await crashed_log(tmp_path)
    victim = path.with_name(part)
    whole = {name: path.with_name(name).read_bytes() for name in LOG_FILES}
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
    shutil.copytree(path.parent, tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy" / "events.db")) as connection:
        left = connection.execute("SELECT count(*) FROM events").fetchone()[0]
    assert 0 < left < len(events)

    with pytest.raises(Damaged, match=rf"log damaged at {left + 1}: .*aetherscale log verify") as damaged:
        await open_store(path, node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=0)

    assert damaged.value.seq == left + 1
    after = files_of(path.parent)
    assert {name: after[name] for name in before} == before, "what could still be saved has been changed"


async def test_a_lost_database_is_not_replaced_by_an_empty_one(world: SqliteWorld) -> None:
    await (await filled(world)).close()
    world.path.unlink()
    with pytest.raises(Damaged, match="missing"):
        await world.open()
    assert not world.path.exists()


async def test_the_head_of_another_log_does_not_fit(tmp_path: Path) -> None:
    for name, data in (("here", b"\x80"), ("there", b"\x90")):
        (tmp_path / name).mkdir()
        store = await SqliteWorld(tmp_path / name).open()
        await store.append(append_of(write("vm-1", 0, new(data=data))))
        await store.close()
    shutil.copy(tmp_path / "there" / "events.head", tmp_path / "here" / "events.head")
    with pytest.raises(Damaged, match="log damaged at 1: it is not the log that was written"):
        await SqliteWorld(tmp_path / "here").open()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE batches SET link = 'text' WHERE number = 2",
        "UPDATE batches SET last_seq = NULL WHERE number = 2",
        "UPDATE commands SET batch = 'one' WHERE first_seq = 3",
        "UPDATE commands SET key = 7 WHERE first_seq = 3",
        "UPDATE types SET schema = x'01' WHERE id = 1",
        "UPDATE epochs SET node = NULL",
        "UPDATE events SET data = NULL WHERE seq = 3",
        "UPDATE events SET time_us = 'noon' WHERE seq = 3",
        "UPDATE streams SET name = x'00ff' WHERE id = 2",
    ],
)
async def test_a_value_that_became_one_of_another_kind_is_damage(world: SqliteWorld, change: str) -> None:
    await (await filled(world)).close()
    await change_to_another_kind(world, change)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE segments SET data = 7 WHERE first_seq = 1",
        "UPDATE segments SET data = NULL WHERE first_seq = 1",
        "UPDATE segments SET last_seq = 'last' WHERE first_seq = 1",
        "UPDATE segments SET last_seq = 1 << 40 WHERE first_seq = 1",
        "UPDATE segments SET least_us = least_us + 1 WHERE first_seq = 1",
        "UPDATE segment_streams SET version = x'01' WHERE version = 1",
        "UPDATE segment_streams SET version = 0 WHERE version = 1",
        "UPDATE segment_streams SET stream_id = stream_id + 100 WHERE version = 1",
        "DELETE FROM segment_streams WHERE version = 1",
    ],
)
async def test_so_is_a_change_of_what_is_sealed_or_leads_to_it(world: SqliteWorld, change: str) -> None:
    await (await filled(world)).close()
    world.archive(keep=2)
    await change_to_another_kind(world, change)


async def change_to_another_kind(world: SqliteWorld, change: str) -> None:
    """Make a change that SQLite's own rules forbid, and see that it is told."""
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        make_changeable(connection)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_schema SET sql = replace(replace(sql, 'STRICT', ''), ' NOT NULL', '')"
            " WHERE sql NOT LIKE '%WITHOUT ROWID%'"
        )
        connection.execute(
            "UPDATE sqlite_schema SET sql = replace(replace(sql, 'STRICT,', ''), ' NOT NULL', '')"
            " WHERE sql LIKE '%WITHOUT ROWID%'"
        )
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        assert connection.execute(change).rowcount >= 1
    assert verify(world.path).problems
    await can_be_served(world.path)


async def test_a_command_that_no_commit_has_is_seen(world: SqliteWorld) -> None:
    await (await filled(world)).close()
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO commands VALUES (CAST('default' || char(0) || 'x' AS BLOB), x'00', 1, 1, 99)")
    result = export(world.path, lambda line: None)
    assert (result.events, result.damage) == (6, "log damaged at 7: what follows belongs to no commit")


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
        make_changeable(connection)
        assert connection.execute(change).rowcount == 1

    found = verify(world.path)
    assert found.problems
    assert found.events <= 2
