"""Any moment of the past from keyframes is what the fold from the first event gives, whatever becomes of `past.db`."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.components import kinds
from aetherscale.debugger.history import History
from aetherscale.debugger.keyframes import Counts, Spacing
from aetherscale.debugger.past import LOG_NAME
from aetherscale.eventstore.archive import archive
from aetherscale.eventstore.sqlite import past
from aetherscale.eventstore.sqlite.connection import connect_read_only
from aetherscale.eventstore.sqlite.past import PAST_NAME, open_keyframes
from aetherscale.eventstore.sqlite.reading import LogReading
from aetherscale.eventstore.transfer import export, import_
from aetherscale.kernel.registry import OURSELVES, Kind
from tests.support.pasts import START_US, STRAY, Truth, chance, known, living, written

SPACING = Spacing(keyframe=32, milestone=4)
EVENTS = 400
SEEDS = 4
root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


SWAPPED = """
    UPDATE parts SET (batch, link, sha256, data) =
        (SELECT batch, link, sha256, data FROM parts AS other WHERE (position, name) = (64, parts.name))
    WHERE position = 192
"""


@contextmanager
def history(state_dir: Path, kinds: tuple[Kind[Any], ...] = kinds(), spacing: Spacing = SPACING) -> Iterator[History]:
    """The past of a log, told as another process would."""
    path = state_dir / LOG_NAME
    with closing(connect_read_only(path)) as connection:
        reading = LogReading(connection, path)
        with closing(
            History(reading, lambda of: open_keyframes(path.with_name(PAST_NAME), of), kinds, spacing=spacing)
        ) as opened:
            yield opened


def kept(state_dir: Path) -> list[int]:
    """Where `past.db` has keyframes."""
    with closing(sqlite3.connect(state_dir / PAST_NAME)) as connection:
        rows = connection.execute("SELECT position FROM parts WHERE name = 'living' ORDER BY position").fetchall()
        return [row[0] for row in rows]


def assert_same(opened: History, truth: Truth, positions: list[int]) -> None:
    """Each moment is what the log says from its first event on, with and without what is deleted."""
    for position in positions:
        assert known(opened.state_at(position)) == truth.at(position), position
        without = opened.state_at(position, deleted=False)
        assert known(without) == living(truth.at(position)), position


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Truth]]:
    """State directories with what is true of them, by the seed of their stories; each is written once."""
    found = {}
    for seed in range(SEEDS):
        directory = tmp_path_factory.mktemp("past") / "state"
        asyncio.run(written(directory, EVENTS, seed))
        found[seed] = (directory, Truth(directory))
    return found


@pytest.fixture
def state_dir(made: dict[int, tuple[Path, Truth]], tmp_path: Path) -> Path:
    """A state directory of one's own."""
    return shutil.copytree(made[1][0], tmp_path / "state")


@pytest.fixture
def truth(made: dict[int, tuple[Path, Truth]]) -> Truth:
    """What is true of it as it was written."""
    return made[1][1]


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_every_moment_is_the_fold_from_the_first_event(
    made: dict[int, tuple[Path, Truth]], tmp_path: Path, seed: int, sealed: bool
) -> None:
    state, truth = shutil.copytree(made[seed][0], tmp_path / "state"), made[seed][1]
    if sealed:
        archive(state / LOG_NAME, lambda reading: reading.head() - 50, segment_events=20)
    positions = list(range(len(truth.events) + 1))
    chance(seed).shuffle(positions)  # so that keyframes are made a few at a time, from others and from none
    with history(state) as opened:
        assert_same(opened, truth, positions)
    with history(state) as opened:
        assert_same(opened, truth, positions[::3])
    assert kept(state) == list(range(32, len(truth.events) + 1, 32))


def test_the_story_has_what_is_hard_to_tell(truth: Truth) -> None:
    """The logs of these tests have late events of deleted VMs, names that came back, and times that step back."""
    recalled = [
        one
        for one in truth.events
        if type(one.event).__name__ == STRAY and _phase(truth, one.seq // 32 * 32, one.stream) == "deleted"
    ]
    assert len(recalled) > 3
    assert any(_phase(truth, one.seq, one.stream) != "deleted" for one in recalled)
    [(_, vms, _, _)] = [truth.at(len(truth.events))["vm"]]
    names = [one.state.name for one in vms.values()]
    assert len(set(names)) < len(names)
    assert any(after.time_us < before.time_us for before, after in zip(truth.events, truth.events[1:], strict=False))


def _phase(truth: Truth, position: int, stream: str) -> str:
    kind, _, identifier = stream.partition("-")
    found = truth.at(position)[kind][1].get(identifier)
    return found.state.phase if found is not None else ""


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("filled_to", [0, 64, 200, EVENTS])
def test_every_time_means_the_position_that_the_log_says(
    made: dict[int, tuple[Path, Truth]], tmp_path: Path, seed: int, filled_to: int
) -> None:
    state, truth = shutil.copytree(made[seed][0], tmp_path / "state"), made[seed][1]
    times = sorted({event.time_us for event in truth.events})
    moments = {time_us + more for time_us in times for more in (-1, 0, 1)} | {0, START_US - 10**9, times[-1] + 10**9}
    with history(state) as opened:
        opened.state_at(filled_to)
        for moment in moments:
            assert opened.position_at(moment) == opened._reading.position_at(moment), moment


def test_counts_are_those_of_all_events_before(state_dir: Path, truth: Truth) -> None:
    counts = [Counts()]
    for event in truth.events:
        before, after = ({one.id: one for one in _all(truth, at)} for at in (event.seq - 1, event.seq))
        counts.append(_counted(counts[-1], event, before, after))
    assert counts[-1].failed > 0
    assert counts[-1].asked > 0
    assert counts[-1].happened > 0
    positions = list(range(len(counts)))
    chance(1).shuffle(positions)
    with history(state_dir) as opened:
        for position in positions:
            assert opened.counts_at(position) == counts[position], position


def _all(truth: Truth, position: int) -> Iterator[Any]:
    for _, aggregates, *_ in truth.at(position).values():
        yield from aggregates.values()


def _counted(counts: Counts, event: Any, before: dict[str, Any], after: dict[str, Any]) -> Counts:
    kind, _, identifier = event.stream.partition("-")
    if kind == "claim":
        return counts
    old = before[identifier].state.failure if identifier in before else None
    new = after[identifier].state.failure
    if new is not None and new is not old:
        return replace(counts, failed=counts.failed + 1)
    if event.actor.startswith(OURSELVES):
        return replace(counts, happened=counts.happened + 1)
    return replace(counts, asked=counts.asked + 1)


def test_a_moment_beyond_the_end_is_the_end(state_dir: Path, truth: Truth) -> None:
    head = len(truth.events)
    with history(state_dir) as opened:
        assert {name: one.aggregates for name, one in opened.state_at(head + 1000).items()} == {
            name: one.aggregates for name, one in opened.state_at(head).items()
        }


def test_only_what_is_missing_up_to_the_moment_is_made(state_dir: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(31)
        assert kept(state_dir) == []
        opened.state_at(32)
        assert kept(state_dir) == [32]
        opened.state_at(100)
        opened.state_at(40)
    assert kept(state_dir) == [32, 64, 96]


async def test_a_log_that_grows_is_followed(state_dir: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(len(Truth(state_dir).events))
        await written(state_dir, 100, seed=5)
        truth = Truth(state_dir)
        assert_same(opened, truth, list(range(380, len(truth.events) + 1)))


# --- what becomes of the file -----------------------------------------------------------------------------------------


def test_the_file_is_private_and_alone(state_dir: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    assert stat.S_IMODE((state_dir / PAST_NAME).stat().st_mode) == 0o600
    assert [path.name for path in state_dir.glob(f"{PAST_NAME}*")] == [PAST_NAME]


@pytest.mark.parametrize("when", ["between", "in use"])
def test_the_file_may_be_deleted_at_any_time(state_dir: Path, truth: Truth, when: str) -> None:
    positions = list(range(0, EVENTS, 7))
    with history(state_dir) as opened:
        assert_same(opened, truth, positions)
        (state_dir / PAST_NAME).unlink()
        if when == "in use":
            assert_same(opened, truth, positions)
    with history(state_dir) as opened:
        assert_same(opened, truth, positions)
    assert kept(state_dir) == list(range(32, positions[-1] + 1, 32))


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_made_anew(state_dir: Path, truth: Truth, seed: int) -> None:
    random = chance(seed)
    positions = list(range(0, EVENTS, 13))
    with history(state_dir) as opened:
        assert_same(opened, truth, positions)
    path = state_dir / PAST_NAME
    raw = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 3, 300))):
        begin = random.randrange(len(raw))
        end = min(begin + random.choice((1, 16, 4096)), len(raw))
        raw[begin:end] = random.randbytes(end - begin)
    path.write_bytes(raw[: random.choice((len(raw), len(raw), random.randrange(len(raw))))])
    with history(state_dir) as opened:
        assert_same(opened, truth, positions)
    with history(state_dir) as opened:
        assert_same(opened, truth, positions)


@pytest.mark.parametrize("content", [b"", b"Dear diary, " * 1000, b"SQLite format 3\0"], ids=["empty", "text", "torn"])
def test_a_file_of_something_else_is_made_anew(state_dir: Path, truth: Truth, content: bytes) -> None:
    (state_dir / PAST_NAME).write_bytes(content)
    with history(state_dir) as opened:
        assert_same(opened, truth, [EVENTS])
    assert kept(state_dir) == list(range(32, EVENTS + 1, 32))


@pytest.mark.parametrize("sql", ["PRAGMA user_version = 99", "ALTER TABLE parts RENAME TO others", "DROP TABLE parts"])
def test_a_file_of_another_version_is_made_anew(state_dir: Path, truth: Truth, sql: str) -> None:
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    with closing(sqlite3.connect(state_dir / PAST_NAME)) as connection:
        connection.execute(sql)
    with history(state_dir) as opened:
        assert_same(opened, truth, [EVENTS])
    assert kept(state_dir) == list(range(32, EVENTS + 1, 32))


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE parts SET data = (SELECT data FROM parts AS other WHERE (position, name) = (64, parts.name))",
        "UPDATE parts SET position = 1000 - position",
        SWAPPED,
        "UPDATE parts SET data = zeroblob(10) WHERE position = 128",
        "DELETE FROM parts WHERE position = 96",
        "DELETE FROM parts WHERE name = 'departed' AND position = 64",
        "DELETE FROM parts WHERE name = 'milestones'",
    ],
)
def test_what_was_tampered_with_is_not_believed(state_dir: Path, truth: Truth, sql: str) -> None:
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    with closing(sqlite3.connect(state_dir / PAST_NAME)) as connection:
        connection.execute(sql)
        connection.commit()
    with history(state_dir) as opened:
        assert_same(opened, truth, list(range(0, EVENTS, 11)))
        for event in truth.events[::9]:
            assert opened.position_at(event.time_us) == opened._reading.position_at(event.time_us)


def test_another_shape_of_the_state_has_keyframes_of_its_own(state_dir: Path, truth: Truth) -> None:
    newer = (replace_kind(kinds()[0]), *kinds()[1:])
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    with history(state_dir, newer) as opened:
        opened.state_at(10)
        assert len(kept(state_dir)) == EVENTS // 32, "the older one's stay until there is something newer"
        opened.state_at(70)
        assert kept(state_dir) == [32, 64]
    with history(state_dir) as opened:
        assert_same(opened, truth, [EVENTS, 65, 31])


def replace_kind(kind: Kind[Any]) -> Kind[Any]:
    """The same kind in a later version of the program."""
    fields = {name: getattr(kind, name) for name in Kind.__slots__}
    return Kind(**{**fields, "version": kind.version + 1})


# --- what becomes of the log ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back_to", [10, 150])
@pytest.mark.parametrize("more", [20, 100, 500])
async def test_a_log_that_was_rolled_back_and_went_on_is_believed(tmp_path: Path, back_to: int, more: int) -> None:
    state = tmp_path / "state"
    await written(state, back_to, seed=1)
    backup = shutil.copytree(state, tmp_path / "backup")
    await written(state, EVENTS, seed=2)
    with history(state) as opened:
        opened.state_at(EVENTS)
    shutil.copy(state / PAST_NAME, backup / PAST_NAME)
    await written(backup, more, seed=3)
    truth = Truth(backup)
    with history(backup) as opened:
        assert_same(opened, truth, list(range(0, len(truth.events) + 1, 9)))
        for event in truth.events[::9]:
            assert opened.position_at(event.time_us) == opened._reading.position_at(event.time_us)


async def test_a_log_that_was_rewritten_under_its_epoch_is_believed(tmp_path: Path) -> None:
    await written(tmp_path / "state", EVENTS, seed=1)
    await written(tmp_path / "other", EVENTS, seed=2)
    with history(tmp_path / "state") as opened:
        opened.state_at(EVENTS)
    shutil.copy(tmp_path / "state" / PAST_NAME, tmp_path / "other" / PAST_NAME)
    with history(tmp_path / "other") as opened:
        assert_same(opened, Truth(tmp_path / "other"), list(range(0, EVENTS, 9)))


async def test_an_import_has_keyframes_of_its_own_epoch(state_dir: Path, tmp_path: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    lines: list[bytes] = []
    export(state_dir / LOG_NAME, lines.append)
    (tmp_path / "new").mkdir(mode=0o700)
    import_(lines, tmp_path / "new" / LOG_NAME, epoch="1" * 32, now_us=START_US)
    shutil.copy(state_dir / PAST_NAME, tmp_path / "new" / PAST_NAME)
    await written(tmp_path / "new", 100, seed=7, epoch="1" * 32)
    truth = Truth(tmp_path / "new")
    with history(tmp_path / "new") as opened:
        assert_same(opened, truth, list(range(0, len(truth.events) + 1, 9)))
    with closing(sqlite3.connect(tmp_path / "new" / PAST_NAME)) as connection:
        assert connection.execute("SELECT DISTINCT epoch FROM parts").fetchall() == [("1" * 32,)]


def test_sealing_the_log_leaves_keyframes_as_they_are(state_dir: Path, truth: Truth) -> None:
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    before = (state_dir / PAST_NAME).read_bytes()
    archive(state_dir / LOG_NAME, lambda reading: reading.head() - 50, segment_events=20)
    with history(state_dir) as opened:
        assert_same(opened, truth, list(range(0, EVENTS, 5)))
    assert (state_dir / PAST_NAME).read_bytes() == before


# --- where nothing can be kept ----------------------------------------------------------------------------------------


def assert_told_without_a_file(state_dir: Path, truth: Truth) -> None:
    """The past is told, twice alike, and nothing is different in the directory."""
    before = seen(state_dir)
    with history(state_dir) as opened:
        assert_same(opened, truth, list(range(0, EVENTS, 13)))
        assert_same(opened, truth, list(range(0, EVENTS, 13)))
    assert seen(state_dir) == before


def seen(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Owner, mode, time of the last change and content of all that is in a directory; see test_state_directory.py."""
    found = {}
    for path in (directory, *directory.iterdir()):
        if path.name.endswith("-shm"):
            continue
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[path.name] = (status.st_uid, status.st_mode, status.st_mtime_ns, content)
    return found


@root
@pytest.mark.parametrize("filled", [False, True])
def test_in_the_directory_of_another_user_nothing_is_left(state_dir: Path, truth: Truth, filled: bool) -> None:
    if filled:
        with history(state_dir) as opened:
            opened.state_at(EVENTS)
    for path in (*state_dir.iterdir(), state_dir):
        os.chown(path, 54321, 54321)
    assert_told_without_a_file(state_dir, truth)


@root
def test_what_another_user_has_kept_is_used(state_dir: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(200)
    for path in (*state_dir.iterdir(), state_dir):
        os.chown(path, 54321, 54321)
    with history(state_dir) as opened:
        assert opened._keyframes.last(EVENTS) == 192


@root
def test_a_large_file_that_may_only_be_read_is_not_copied(
    state_dir: Path, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "COPIED_BYTES", 4096)
    with history(state_dir) as opened:
        opened.state_at(200)
    for path in (*state_dir.iterdir(), state_dir):
        os.chown(path, 54321, 54321)
    with history(state_dir) as opened:
        assert opened._keyframes.last(EVENTS) == 0
        assert_same(opened, truth, [200])


@root
@pytest.mark.parametrize("what", ["link", "hard link", "pipe", "directory"])
def test_what_stands_in_the_place_of_the_file_is_left_as_it_is(
    state_dir: Path, truth: Truth, tmp_path: Path, what: str
) -> None:
    victim, place = tmp_path / "victim", state_dir / PAST_NAME
    victim.write_bytes(b"precious")
    match what:
        case "link":
            place.symlink_to(victim)
        case "hard link":
            place.hardlink_to(victim)
        case "pipe":
            os.mkfifo(place)
        case _:
            place.mkdir()
    assert_told_without_a_file(state_dir, truth)
    assert victim.read_bytes() == b"precious"


def test_a_directory_that_others_may_write_to_is_left_as_it_is(state_dir: Path, truth: Truth) -> None:
    state_dir.chmod(0o777)
    assert_told_without_a_file(state_dir, truth)


def test_a_full_disk_costs_no_answer(state_dir: Path, truth: Truth) -> None:
    with history(state_dir) as opened:
        opened._keyframes._connection.execute("PRAGMA max_page_count = 5")
        assert_same(opened, truth, list(range(0, EVENTS, 13)))
    with history(state_dir) as opened:
        assert_same(opened, truth, list(range(0, EVENTS, 13)))


def test_a_file_that_somebody_holds_costs_no_answer(
    state_dir: Path, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aetherscale.eventstore.sqlite.connection.BUSY_S", 0.01)
    with history(state_dir) as opened, closing(sqlite3.connect(state_dir / PAST_NAME)) as other:
        opened.state_at(100)
        other.execute("BEGIN EXCLUSIVE")
        assert_same(opened, truth, list(range(0, EVENTS, 13)))
    assert kept(state_dir) == [32, 64, 96]


# --- two at a time ----------------------------------------------------------------------------------------------------


def test_two_that_fill_at_the_same_time_keep_the_same(state_dir: Path, truth: Truth) -> None:
    with history(state_dir) as one, history(state_dir) as other:
        for position in range(0, EVENTS, 17):
            assert_same(one, truth, [position])
            assert_same(other, truth, [min(position + 40, EVENTS)])
    assert kept(state_dir) == list(range(32, EVENTS + 1, 32))


def test_two_versions_of_the_program_that_fill_at_the_same_time_are_both_right(state_dir: Path, truth: Truth) -> None:
    newer = (replace_kind(kinds()[0]), *kinds()[1:])
    with history(state_dir) as one, history(state_dir, newer) as other:
        for position in range(0, EVENTS, 17):
            assert_same(one, truth, [position])
            assert_same(other, truth, [min(position + 40, EVENTS)])


async def test_many_threads_fill_one_file(state_dir: Path, truth: Truth) -> None:

    def ask(seed: int) -> None:
        positions = list(range(0, EVENTS + 1, 7))
        chance(seed).shuffle(positions)
        with history(state_dir) as opened:
            assert_same(opened, truth, positions)

    await asyncio.gather(*(asyncio.to_thread(ask, seed) for seed in range(6)))
    assert kept(state_dir) == list(range(32, EVENTS + 1, 32))
