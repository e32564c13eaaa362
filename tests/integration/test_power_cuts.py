"""The power fails under the real log, at every kind of moment: what was acknowledged is there, and nothing else.

`just powercuts` tries thousands more.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aetherscale.eventstore.integrity import info
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.transfer import export
from tests.powercuts.cuts import Account, Cut, after_a_cut, cut_at, put, try_history, written_by
from tests.powercuts.disk import Names, Said, seeded
from tests.powercuts.ledger import EVENTS_PER_APPEND
from tests.powercuts.recorder import Recording, files_of, record
from tests.powercuts.writer import ROUNDS, TASKS
from tests.support.event_logs import EPOCH, NODE, NOW_US, SqliteWorld, filled, read_all
from tests.support.in_memory import memory_path

__all__ = ["memory_path"]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_power_cut_takes_what_was_acknowledged(memory_path: Path, seed: int) -> None:
    account = await try_history(seed, 150, memory_path)
    assert account.faults == []
    assert account.lost == 0
    assert account.acknowledged > account.cuts, "there was something to lose"
    assert account.unacknowledged > 0, "commits were on their way when the power failed"


async def test_a_log_that_does_not_wait_for_the_disk_loses_what_was_acknowledged(memory_path: Path) -> None:
    total = Account()
    for seed in (1, 2):
        total.add(await try_history(seed, 150, memory_path / f"{seed}", synchronous="NORMAL"))
    assert total.lost > 0, "the disk loses nothing, so that the tests above show nothing"


async def test_a_power_cut_while_a_log_is_made_leaves_none_or_an_empty_one(memory_path: Path) -> None:
    running, after = memory_path / "running", memory_path / "after"
    running.mkdir()
    recording = Recording({}, [], [])
    record(["tests.powercuts.writer", str(running), "run", "close"], running, recording)
    made = next(place for place, step in enumerate(recording.steps) if isinstance(step, Said))
    for place in range(made + 1):
        named = any(isinstance(step, Names) for step in recording.steps[max(0, place - 4) : place])
        for seed in range(12 if named else 1):
            cut = cut_at(recording, place, seed)
            put(cut.files, after, seeded(seed))
            assert await after_a_cut(cut, after, []) == (0, []), cut.place


async def test_what_a_killed_process_left_is_durable_before_anybody_acts_on_it(memory_path: Path) -> None:
    running, after = memory_path / "running", memory_path / "after"
    running.mkdir()
    recording = Recording({}, [], [])
    arguments = ["tests.powercuts.writer", str(running), "run", "close"]
    record(arguments, running, recording, kill_at=300)
    acknowledged = cut_at(recording, len(recording.steps), 0).acknowledged
    record(arguments, running, recording)
    written = await written_by(recording, after)
    assert len(written) == TASKS * ROUNDS * EVENTS_PER_APPEND

    began = recording.began[1]
    found = next(place for place in range(began, len(recording.steps)) if isinstance(recording.steps[place], Said))
    for seed in range(20):
        cut = cut_at(recording, found + 1, seed)
        assert cut.acknowledged > acknowledged, "the second process found what the first one had not acknowledged"
        put(cut.files, after, seeded(seed))
        assert await after_a_cut(cut, after, written) == (cut.acknowledged, []), cut.place


async def test_the_head_is_durable_when_a_log_is_closed(memory_path: Path) -> None:
    recording = Recording({}, [], [])
    record(["tests.powercuts.writer", str(memory_path), "run", "close"], memory_path, recording)
    head = recording.disk().as_it_is()["events.head"]
    for seed in range(20):
        assert cut_at(recording, len(recording.steps), seed).files["events.head"] == head


async def test_a_power_cut_while_old_events_are_sealed_takes_none_of_them(memory_path: Path) -> None:
    running, after = memory_path / "running", memory_path / "after"
    running.mkdir()
    written_to = Recording({}, [], [])
    record(["tests.powercuts.writer", str(running), "run", "close"], running, written_to)
    written = await written_by(written_to, after)
    told = Cut("written", {}, len(written), frozenset(event.command_id for event in written))
    recording = Recording(files_of(running), [], [])
    record(["tests.powercuts.sealing", str(running)], running, recording)
    assert info(running / "events.db").sealed_to > len(written) // 2

    sealed = set()
    for place in range(0, len(recording.steps) + 1, max(1, len(recording.steps) // 100)):
        cut = cut_at(recording, place, place, told)
        put(cut.files, after, seeded(place))
        assert await after_a_cut(cut, after, written) == (len(written), []), cut.place
        sealed.add(info(after / "events.db").sealed_to)
    assert len(sealed) == 2, "the power failed before the sealing was durable and after"


async def test_a_power_cut_during_an_import_leaves_all_of_it_or_nothing(memory_path: Path) -> None:
    directories = [memory_path / name for name in ("source", "running", "after")]
    for directory in directories:
        directory.mkdir()
    source, running, after = directories
    store = await filled(SqliteWorld(source), 20)
    events = await read_all(store)
    await store.close()
    with (memory_path / "lines").open("wb") as lines:
        export(source / "events.db", lines.write)
    recording = Recording({}, [], [])
    record(["tests.powercuts.importing", str(memory_path / "lines"), str(running)], running, recording)

    found = set()
    for place in range(len(recording.steps) + 1):
        for seed in range(3):
            cut: Cut = cut_at(recording, place, seed)
            put(cut.files, after, seeded(seed))
            store = await open_store(after / "events.db", node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=0)
            there = await read_all(store)
            await store.close()
            assert there in ([], events), cut.place
            assert there or not cut.acknowledged, cut.place
            found.add(len(there))
    assert found == {0, len(events)}
