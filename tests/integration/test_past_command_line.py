"""`replay`, `diff` and `why` say the same with keyframes of the past and without, and tell of making them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from aetherscale.__main__ import program
from aetherscale.debugger import history, past
from aetherscale.debugger.keyframes import KEYFRAME_EVENTS
from aetherscale.eventstore import integrity
from aetherscale.eventstore.sqlite.past import PAST_NAME
from aetherscale.gateways.cli.main import run
from aetherscale.kernel.times import to_rfc3339
from tests.support.cli import run as run_apart
from tests.support.node import PATIENCE_S, ROOT
from tests.support.pasts import chance, recorded, written
from tests.support.terminal import Terminal

EVENTS = 2 * KEYFRAME_EVENTS + 700
root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a log of more than two keyframes; written once."""
    directory = tmp_path_factory.mktemp("past") / "state"
    asyncio.run(written(directory, EVENTS, seed=3, at_once=64))
    return directory


@pytest.fixture
def state_dir(made: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return shutil.copytree(made, tmp_path / "state")


def questions(state_dir: Path) -> list[list[str]]:
    """Moments by number and by time, right at keyframes and anywhere; objects that are there and that are gone."""
    random, events = chance(5), recorded(state_dir)
    boundaries = [at + more for at in (KEYFRAME_EVENTS, 2 * KEYFRAME_EVENTS) for more in (-1, 0, 1)]
    anywhere = [random.randrange(len(events)) for _ in range(3)]
    moments = [str(at) for at in (*boundaries, *anywhere, len(events))]
    moments += [to_rfc3339(events[at].time_us) for at in anywhere]
    gone = random.choice([each.stream for each in events if type(each.event).__name__ == "VmDeleted"])
    late = random.choice([each.stream for each in events if type(each.event).__name__ == "VmStrayFound"])
    asked = [["replay", "--at", moment] for moment in moments]
    asked += [["replay", "vm", "--all", "--at", moment] for moment in moments[::4]]
    asked += [["diff", *sorted(pair, key=int)] for pair in pairwise(moments[2:7])]
    asked += [["diff", "1"], ["replay"], ["replay", "--all"], ["events", "list", "--vm", "web", "--limit", "30"]]
    for moment in moments[1::5]:
        asked += [["why", "vm", "web", "--at", moment], ["why", "image", "image-1", "--at", moment]]
        asked += [["why", "vm", stream.partition("-")[2], "--all", "--at", moment] for stream in (gone, late)]
    return asked


def told(state_dir: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The status of a command, and what it wrote to stdout and stderr."""
    status = run(["--state-dir", str(state_dir), *words, "--json"], program())
    written = capsys.readouterr()
    return status, written.out, written.err


def test_the_command_line_says_the_same_with_and_without_keyframes(
    state_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "PROVED_BYTES", 0)  # each question would prove the log first
    asked = questions(state_dir)
    with monkeypatch.context() as without:
        without.setattr(past, "KEYFRAME_EVENTS", 10**9)
        expected = [told(state_dir, words, capsys) for words in asked]
    assert not (state_dir / PAST_NAME).exists()
    assert {status for status, _, _ in expected} <= {0, 3}  # 3: nothing of that name was there
    assert sum(status == 0 for status, _, _ in expected) > len(expected) / 2
    for words, answer in zip(asked, expected, strict=True):
        assert told(state_dir, words, capsys) == answer, words
    assert (state_dir / PAST_NAME).exists()
    for words, answer in zip(asked, expected, strict=True):
        assert told(state_dir, words, capsys) == answer, words


@pytest.mark.parametrize("words", ["replay --at 2000", "diff 10 20", "events list --limit 3", "log info", "log verify"])
def test_what_needs_no_keyframe_makes_no_file(state_dir: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert told(state_dir, words.split(), capsys)[0] == 0
    assert not (state_dir / PAST_NAME).exists()


@root
def test_root_leaves_nothing_in_the_directory_of_a_service(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (*state_dir.iterdir(), state_dir):
        os.chown(path, 54321, 54321)
    before = sorted(path.name for path in state_dir.iterdir())
    status, out, _ = told(state_dir, ["replay"], capsys)
    assert status == 0
    assert '"vm":[{' in out
    assert sorted(path.name for path in state_dir.iterdir()) == before


async def test_two_programs_that_fill_at_the_same_time_say_the_same(state_dir: Path) -> None:
    answers = await asyncio.gather(
        *(run_apart("--state-dir", str(state_dir), "replay", "--all", "--json") for _ in range(4))
    )
    assert {status for status, _, _ in answers} == {0}
    assert len({out for _, out, _ in answers}) == 1
    with closing(sqlite3.connect(state_dir / PAST_NAME)) as connection:
        rows = connection.execute("SELECT position FROM parts WHERE name = 'living' ORDER BY position").fetchall()
    assert rows == [(KEYFRAME_EVENTS,), (2 * KEYFRAME_EVENTS,)]


# --- progress ---------------------------------------------------------------------------------------------------------


def test_a_long_fill_is_told_in_plain_lines_and_a_filled_one_is_not(
    state_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "TOLD_KEYFRAMES", 1)
    words = ["--state-dir", str(state_dir), "replay", "vm"]
    assert run(words, program()) == 0
    lines = [line.partition(" (")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("past: ")]
    assert lines == [
        f"past: making keyframes: {done} of {2 * KEYFRAME_EVENTS} events"
        for done in (0, KEYFRAME_EVENTS, 2 * KEYFRAME_EVENTS)
    ]
    assert run(words, program()) == 0
    assert "keyframes" not in capsys.readouterr().err


def test_a_short_fill_is_not_told(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--state-dir", str(state_dir), "replay", "vm"], program()) == 0
    assert "keyframes" not in capsys.readouterr().err


def test_where_json_was_asked_for_nothing_is_told(
    state_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "TOLD_KEYFRAMES", 1)
    assert "keyframes" not in told(state_dir, ["replay"], capsys)[2]


TOLD = """
import sys
from aetherscale.__main__ import program
from aetherscale.debugger import history
from aetherscale.gateways.cli.main import run
history.TOLD_KEYFRAMES = 1
sys.exit(run(sys.argv[1:], program()))
"""


async def test_on_a_terminal_one_line_tells_how_far_it_is(state_dir: Path) -> None:
    terminal = Terminal()
    await terminal.start(
        *(sys.executable, "-c", TOLD, "--state-dir", str(state_dir), "replay", "vm"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    await terminal.until("past: making keyframes:", "as of event")
    assert await terminal.end() == 0
    await terminal.close()


SLOW = """
import sys, time
from aetherscale.__main__ import program
from aetherscale.debugger import history
from aetherscale.gateways.cli.main import run

events = history.History._events
def slow(self, after, until):
    print("begun", flush=True)
    while not self._stopped.is_set():
        time.sleep(0.01)
    return events(self, after, until)
history.History._events = slow
sys.exit(run(sys.argv[1:], program()))
"""


async def test_an_interrupt_ends_a_fill(state_dir: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SLOW, "--state-dir", str(state_dir), "replay"), stdout=PIPE, stderr=PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), PATIENCE_S) == b"begun\n"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode in (130, -signal.SIGINT)
    assert b"Traceback" not in err
