"""Sealed events: whatever ends the sealing the log is whole, and nobody who reads it notices the difference."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from aetherscale.eventstore.archive import archive, preview
from aetherscale.eventstore.integrity import info, verify
from aetherscale.eventstore.sqlite.connection import connect_read_only
from aetherscale.eventstore.sqlite.reading import LogReading
from aetherscale.eventstore.sqlite.segments import Segments
from aetherscale.eventstore.store import AS_STORED, Damaged, Locked, StoredEvent, TooNew, WrongVersion
from aetherscale.eventstore.transfer import export
from tests.support.event_logs import NOW_US, SqliteWorld, append_of, files_of, filled, new, open_reader, read_all, write
from tests.support.node import ROOT


async def log_of(directory: Path, commits: int = 60) -> tuple[SqliteWorld, list[StoredEvent]]:
    """A log at rest, of two events for each commit."""
    directory.mkdir(exist_ok=True)
    world = SqliteWorld(directory)
    store = await filled(world, commits)
    events = await read_all(store)
    await store.close()
    return world, events


async def content(path: Path) -> list[StoredEvent]:
    reader = await open_reader(path)
    try:
        return await read_all(reader)
    finally:
        await reader.close()


def statements(path: Path, fatal: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.archiver", str(path), str(fatal)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


async def test_a_sealing_that_is_killed_anywhere_leaves_the_log_whole(tmp_path: Path) -> None:
    _, events = await log_of(tmp_path / "log")
    shutil.copytree(tmp_path / "log", tmp_path / "all")
    count = int(statements(tmp_path / "all/events.db", 0).stdout)
    assert count > 60
    seen = set()
    for fatal in [*range(1, count, count // 24), count]:
        place = tmp_path / f"killed-{fatal}"
        shutil.copytree(tmp_path / "log", place)
        assert statements(place / "events.db", fatal).returncode == -signal.SIGKILL
        assert await content(place / "events.db") == events, f"killed before statement {fatal}"
        assert verify(place / "events.db").problems == ()
        seen.add(info(place / "events.db").sealed_to)
        done = archive(place / "events.db", lambda reading: reading.head() - 6, segment_events=10)
        assert done.sealed_to == 110
        assert await content(place / "events.db") == events
        assert verify(place / "events.db").problems == ()
    assert len(seen) > 4, "it was killed in several of its transactions"


async def test_what_is_saved_is_told_and_nothing_else_of_the_log_changes(tmp_path: Path) -> None:
    world, events = await log_of(tmp_path, 600)
    lines = bytearray()
    export(world.path, lines.extend)
    planned = preview(world.path, lambda reading: reading.head() - 10)
    assert (planned.events, planned.segments, planned.sealed_to) == (1000, 1, 1000)
    assert info(world.path).segments == 0

    told: list[tuple[int, int]] = []
    done = archive(world.path, lambda reading: reading.head() - 10, lambda sealed, total: told.append((sealed, total)))
    assert (done.events, done.segments, done.sealed_to, done.reclaimed) == (1000, 1, 1000, True)
    assert told == [(1000, 1000)]
    assert done.after_bytes == world.path.stat().st_size < done.before_bytes
    assert sorted(each.name for each in tmp_path.iterdir() if each.stat().st_size) == [
        "events.db",
        "events.head",
        "events.lock",
        "events.reserve",
    ]
    assert await content(world.path) == events
    again = bytearray()
    export(world.path, again.extend)
    assert again == lines
    found = info(world.path)
    assert (found.events, found.commits, found.sealed_to, found.segments) == (1200, 600, 1000, 1)
    assert found.first_us == events[0].time_us
    assert archive(world.path, lambda reading: reading.head()).events == 0, "what is left is less than a segment"


async def answers_of(path: Path, events: list[StoredEvent]) -> list[object]:
    """Everything that can be asked of a log, in small pages from everywhere."""
    reader = await open_reader(path)
    try:
        return [
            [list(await reader.read(after, 7, types)) for after in range(len(events)) for types in (None, ["Made"])],
            [list(await reader.read(after, 3, ["Grown", "Odd"])) for after in range(len(events))],
            [list(await reader.read_stream(each.stream, each.version - 1)) for each in events],
            [await reader.position_at(time_us) for time_us in range(NOW_US - 20, NOW_US + 20)],
            [await reader.accepted("default", f"command-{number}") for number in range(130)],
            [await reader.types(), await reader.head()],
        ]
    finally:
        await reader.close()


async def test_every_question_has_the_answer_that_it_had(tmp_path: Path) -> None:
    world, _ = await log_of(tmp_path, 10)
    store = await world.open()
    for number in range(40):
        # The clock goes back and forth, and some types are rare.
        time_us = NOW_US + (number * 7) % 23 - 12
        await store.append(
            append_of(write("vm-odd", number, new("Odd" if number % 9 == 0 else "Grown")), time_us=time_us)
        )
    events = await read_all(store)
    await store.close()
    before = await answers_of(world.path, events)
    for keep in (40, 13, 2):
        archive(world.path, lambda reading, keep=keep: reading.head() - keep, segment_events=4)  # type: ignore[misc]
        assert info(world.path).sealed_to > len(events) - keep - 5
        assert await answers_of(world.path, events) == before


async def test_a_node_goes_on_with_a_log_that_was_sealed(tmp_path: Path) -> None:
    world, events = await log_of(tmp_path)
    archive(world.path, lambda reading: reading.head() - 2, segment_events=10)
    store = await world.open()
    with pytest.raises(WrongVersion):
        await store.append(append_of(write("vm-3", 0)))
    [added] = await store.append(append_of(write("vm-3", 1, new("Grown"))))
    assert (added.seq, added.version) == (121, 2)
    assert await store.read_stream("vm-3") == [events[6], added]
    assert await store.read_stream("vm-3", 1) == [added]
    assert (await store.accepted("default", "command-3")) is not None
    with pytest.raises(Locked):
        archive(world.path, lambda reading: reading.head())
    await store.close()


async def test_who_reads_while_the_log_is_sealed_misses_nothing_and_gets_nothing_twice(tmp_path: Path) -> None:
    world, events = await log_of(tmp_path)
    reader = await open_reader(world.path)
    assert await reader.read(0, 50) == events[:50]
    archive(world.path, lambda reading: reading.head() - 6, segment_events=10)
    assert await reader.read(50, 50) == events[50:100]
    assert await reader.read(100, 50) == events[100:]
    assert await read_all(reader, 7) == events
    assert await reader.read_stream("vm-common") == [each for each in events if each.stream == "vm-common"]
    await reader.close()


async def test_what_is_sealed_between_two_looks_is_neither_missed_nor_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, events = await log_of(tmp_path)
    looks = 0
    last_seq = Segments.last_seq

    def sealed_meanwhile(self: Segments) -> int:
        nonlocal looks
        looks += 1
        found = last_seq(self)
        if looks in (1, 3):
            monkeypatch.setattr(Segments, "last_seq", last_seq)
            archive(world.path, lambda reading: 30 * looks, segment_events=10)
            monkeypatch.setattr(Segments, "last_seq", sealed_meanwhile)
        return found

    with closing(connect_read_only(world.path)) as connection:
        reading = LogReading(connection, world.path)
        monkeypatch.setattr(Segments, "last_seq", sealed_meanwhile)
        assert reading.read(AS_STORED, 4, 100, ["Made", "Grown"]) == events[4:104]
    assert looks == 6, "it looked again, twice"


async def test_sealed_events_refuse_to_be_changed_by_hand(tmp_path: Path) -> None:
    world, _ = await log_of(tmp_path)
    archive(world.path, lambda reading: reading.head() - 6, segment_events=10)
    with closing(sqlite3.connect(world.path)) as connection:
        for statement in (
            "DELETE FROM segments",
            "UPDATE segments SET data = x'00'",
            "DELETE FROM segment_streams",
            "UPDATE segment_streams SET version = 9",
            "DELETE FROM events",
            "UPDATE events SET version = 9",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                connection.execute(statement)


async def test_a_damaged_segment_is_named_with_its_events(tmp_path: Path) -> None:
    world, _ = await log_of(tmp_path)
    archive(world.path, lambda reading: reading.head() - 6, segment_events=10)
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER segments_keep")
        connection.execute("UPDATE segments SET data = zeroblob(40) WHERE first_seq = 21")
    found = verify(world.path)
    assert found.events == 18, "the event after a commit is read to know where it ends"
    assert "log damaged at 21: the segment of events 21 to 30" in found.problems[0].message
    reader = await open_reader(world.path)
    assert len(await reader.read(0, 20)) == 20
    with pytest.raises(Damaged, match="the segment of events 21 to 30 is not as it was sealed"):
        await reader.read(20, 5)
    await reader.close()


async def test_a_log_that_is_not_as_it_was_written_is_not_sealed(tmp_path: Path) -> None:
    world, _ = await log_of(tmp_path)
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER events_keep")
        connection.execute("UPDATE events SET actor = 'user:somebody' WHERE seq = 7")
    before = files_of(tmp_path)
    with pytest.raises(Damaged, match="log damaged at 7"):
        archive(world.path, lambda reading: reading.head() - 6, segment_events=10)
    after = files_of(tmp_path)
    assert (after["events.db"], after["events.head"]) == (before["events.db"], before["events.head"])


async def test_a_log_with_more_than_segments_is_for_a_newer_version(tmp_path: Path) -> None:
    world, _ = await log_of(tmp_path)
    with closing(sqlite3.connect(world.path)) as connection:
        connection.execute("PRAGMA user_version = 3")
    with pytest.raises(TooNew, match="schema 3"):
        await open_reader(world.path)
