"""`past.db` may be deleted, damaged or impossible to keep: the past is told all the same."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from aetherscale.eventstore.sqlite import past
from aetherscale.eventstore.sqlite.past import PAST_NAME
from tests.support.past_fixtures import EVENTS, assert_same, history, kept, made, state_dir, truth
from tests.support.pasts import Truth, chance

__all__ = ["made", "state_dir", "truth"]

root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")

SWAPPED = """
    UPDATE parts SET (batch, link, sha256, data) =
        (SELECT batch, link, sha256, data FROM parts AS other WHERE (position, name) = (64, parts.name))
    WHERE position = 192
"""


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


def give_away(state_dir: Path) -> None:
    """To another user, with all that is in it."""
    for path in (*state_dir.iterdir(), state_dir):
        os.chown(path, 54321, 54321)


@root
@pytest.mark.parametrize("filled", [False, True])
def test_in_the_directory_of_another_user_nothing_is_left(state_dir: Path, truth: Truth, filled: bool) -> None:
    if filled:
        with history(state_dir) as opened:
            opened.state_at(EVENTS)
    give_away(state_dir)
    assert_told_without_a_file(state_dir, truth)


@root
def test_what_another_user_has_kept_is_used(state_dir: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(200)
    give_away(state_dir)
    with history(state_dir) as opened:
        assert opened._keyframes.last(EVENTS) == 192


@root
def test_a_large_file_that_may_only_be_read_is_not_copied(
    state_dir: Path, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "COPIED_BYTES", 4096)
    with history(state_dir) as opened:
        opened.state_at(200)
    give_away(state_dir)
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
