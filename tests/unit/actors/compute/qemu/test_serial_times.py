"""The moments of a serial log: `--since` leaves out nothing that came since then, and next to nothing else is shown."""

from __future__ import annotations

import errno
import os
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.compute.driver import LogRange
from aetherscale.actors.compute.qemu import keeper, serialtimes
from aetherscale.actors.compute.qemu.console import stored_log
from aetherscale.actors.compute.qemu.keeper import Keeper
from aetherscale.actors.compute.qemu.layout import CONSOLE_LOG, MOMENTS, MOMENTS_BEFORE, VmDirectory
from aetherscale.actors.compute.qemu.seriallog import SerialLog

VM = "0123456789abcdef"
S = 1_000_000
BEGUN = 1_800_000_000 * S
"""When the clock of these tests stands at 0."""
FILE_BYTES = 400


class Line:
    """A log whose keeper has the clock of the test."""

    def __init__(self, root: Path, limit_bytes: int = FILE_BYTES) -> None:
        self.directory = VmDirectory(root, VM)
        self.directory.make()
        self._limit_bytes = limit_bytes
        self.came: list[tuple[int, bytes]] = []
        self.begin()

    def begin(self) -> None:
        """A new keeper; the one before was killed."""
        self.keeper = Keeper(str(self.directory.path / CONSOLE_LOG), self._limit_bytes)

    def say(self, time_s: float, text: bytes) -> None:
        now_us = BEGUN + int(time_s * S)
        self.keeper.take(text, now_us)
        self.came.append((now_us, text))
        # The kernel has the test's clock too.
        os.utime(self.directory.path / CONSOLE_LOG, ns=(now_us * 1000, now_us * 1000))

    async def since(self, time_s: float, lines: int | None = None) -> bytes:
        self.asked = LogRange(lines=lines, since_us=BEGUN + int(time_s * S))
        return b"".join([piece async for piece in stored_log(SerialLog(self.directory), self.asked)])

    async def stored(self) -> bytes:
        return b"".join([piece async for piece in stored_log(SerialLog(self.directory), LogRange(1 << 30))])

    @property
    def doubts(self) -> tuple[bool, bool]:
        return self.asked.went_back, self.asked.has_no_times


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


async def test_a_moment_is_found_to_the_second(line: Line) -> None:
    for at in range(0, 100, 10):
        line.say(at, b"at %03d\n" % at)
    assert await line.since(-1) == await line.stored()
    assert await line.since(0) == await line.stored()
    assert await line.since(30) == b"".join(b"at %03d\n" % at for at in range(30, 100, 10))
    assert (await line.since(30.9)).startswith(b"at 030\n")
    assert (await line.since(31)).startswith(b"at 040\n")
    assert (await line.since(90)) == b"at 090\n"
    assert (await line.since(91)) == b""
    assert (await line.since(1000)) == b""
    assert line.doubts == (False, False)


async def test_what_comes_within_a_second_has_one_moment(line: Line) -> None:
    for at in range(30):
        line.say(at / 10, b"%02d\n" % at)
    moments = (line.directory.path / MOMENTS).read_bytes()
    assert moments.count(b"\n") == 1 + 3
    assert (await line.since(1.0)).startswith(b"10\n")
    assert (await line.since(1.5)).startswith(b"10\n")
    assert (await line.since(2.0)).startswith(b"20\n")


async def test_the_line_in_which_it_is_is_shown_from_its_beginning(line: Line) -> None:
    line.say(0, b"before\nlogin: ")
    line.say(100, b"root\n")
    assert await line.since(50) == b"login: root\n"
    line.say(200, b"x" * 100)
    assert await line.since(150) == b"x" * 100
    assert await line.since(300) == b""


@pytest.mark.parametrize("more", [0, 1])
async def test_a_line_that_is_very_long_is_shown_from_the_moment(tmp_path: Path, more: int) -> None:
    line = Line(tmp_path, 1 << 20)
    line.say(0, b"\n" + b"x" * (serialtimes.LINE_BYTES - 1 + more))
    line.say(100, b"end\n")
    shown = await line.since(50)
    assert len(shown) == (4 if more else 4 + serialtimes.LINE_BYTES - 1)


async def test_lines_and_a_moment_together_are_the_last_lines_since_then(line: Line) -> None:
    for at in range(0, 100, 10):
        line.say(at, b"%02d\n" % at)
    assert await line.since(70, lines=2) == b"80\n90\n"
    assert await line.since(80, lines=5) == b"80\n90\n"
    assert await line.since(80, lines=0) == b""


async def test_a_moment_in_the_file_before_is_found(line: Line) -> None:
    for at in range(0, 2000, 10):
        line.say(at, b"%04d\n" % at)
    assert (line.directory.path / MOMENTS_BEFORE).exists()
    stored = await line.stored()
    assert FILE_BYTES < len(stored) < 2 * FILE_BYTES
    assert await line.since(20) == stored
    for at in (1000, 1200, 1590, 1600, 1610, 1980):
        assert await line.since(at) == b"".join(b"%04d\n" % each for each in range(at, 2000, 10))


async def test_a_clock_that_was_set_back_hides_nothing_and_is_told(line: Line) -> None:
    line.say(1000, b"a\n")
    line.say(2000, b"b\n")
    line.say(500, b"after the step\n")
    line.say(600, b"c\n")
    assert await line.since(1500) == b"b\nafter the step\nc\n"
    assert line.doubts == (True, False)
    assert await line.since(550) == b"a\nb\nafter the step\nc\n"
    assert line.doubts == (True, False)
    assert await line.since(100) == b"a\nb\nafter the step\nc\n"
    assert line.doubts == (False, False)


@pytest.mark.parametrize("damage", ["cut", "torn", "noise", "empty", "gone", "another's"])
async def test_damaged_moments_hide_nothing(line: Line, damage: str) -> None:
    for at in range(0, 100, 10):
        line.say(at, b"%02d\n" % at)
    path = line.directory.path / MOMENTS
    whole = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(whole[:-20])
        case "torn":
            path.write_bytes(whole[:-20] + whole[-keeper.LINE_BYTES :])
        case "noise":
            path.write_bytes(whole[: keeper.LINE_BYTES] + os.urandom(300) + b"\n" + whole[keeper.LINE_BYTES :])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case _:
            path.write_bytes(keeper.header_of(1) + whole[keeper.LINE_BYTES :])
    line.begin()
    line.say(100, b"100\n")
    for at in (0, 50, 90, 100):
        assert (await line.since(at)).endswith(b"".join(b"%02d\n" % each for each in range(at, 101, 10)))
    assert await line.since(100) == b"100\n"
    await line.since(50)
    assert line.doubts == (False, damage in ("empty", "gone", "another's"))


async def test_a_log_that_was_cut_begins_anew(line: Line) -> None:
    for at in range(0, 100, 10):
        line.say(at, b"%02d\n" % at)
    os.truncate(line.directory.path / CONSOLE_LOG, 0)
    line.say(200, b"new\n")
    line.say(300, b"newer\n")
    assert await line.since(0) == b"new\nnewer\n"
    assert await line.since(250) == b"newer\n"


async def test_a_log_of_an_older_version_is_shown_where_it_may_be_as_late(line: Line) -> None:
    log = line.directory.path / CONSOLE_LOG
    log.write_bytes(b"old\n")
    os.utime(log, ns=((BEGUN + 50 * S) * 1000,) * 2)
    assert await line.since(40) == b"old\n"
    assert line.doubts == (False, True)
    assert await line.since(60) == b""
    line.say(70, b"new\n")
    assert await line.since(40) == b"old\nnew\n"
    assert await line.since(60) == b"new\n"
    assert line.doubts == (False, False)


async def test_what_was_written_while_no_moment_could_be_belongs_to_the_next_one(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.say(0, b"a\n")
    append = keeper.Moments._append

    def full(self: keeper.Moments, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(keeper.Moments, "_append", full)
    line.say(100, b"b\n")
    line.say(200, b"c\n")
    monkeypatch.setattr(keeper.Moments, "_append", append)
    line.say(300, b"d\n")
    line.say(400, b"e\n")
    for at, expected in ((50, b"b\nc\nd\ne\n"), (150, b"b\nc\nd\ne\n"), (350, b"e\n")):
        assert await line.since(at) == expected


async def test_a_log_goes_on_where_its_moments_cannot_be_written(line: Line) -> None:
    (line.directory.path / MOMENTS).mkdir()
    line.say(0, b"a\n")
    line.say(100, b"b\n")
    assert await line.stored() == b"a\nb\n"
    assert await line.since(50) == b"a\nb\n"


async def test_the_moments_are_bounded_and_the_newest_are_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MOMENTS_LIMIT", 16)
    line = Line(tmp_path, 1 << 20)
    for at in range(0, 5000, 10):
        line.say(at, b"%04d\n" % at)
        assert (line.directory.path / MOMENTS).stat().st_size <= (16 + 1) * keeper.LINE_BYTES
    assert await line.since(4950) == b"".join(b"%04d\n" % each for each in range(4950, 5000, 10))
    shown = await line.since(2500)
    assert shown.endswith(b"".join(b"%04d\n" % each for each in range(2500, 5000, 10)))
    assert line.doubts == (False, False)


def test_all_that_is_made_for_it_is_for_its_owner_alone(line: Line) -> None:
    line.say(0, b"x" * FILE_BYTES)
    line.say(1, b"y")
    files = list(line.directory.path.iterdir())
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from([0, 0.2, 0.9, 1, 1.1, 7, 100, -0.5, -50]), st.binary(min_size=1, max_size=90)),
            st.sampled_from(["killed", "torn"]),
        ),
        max_size=40,
    ),
    asked=st.integers(0, 40),
    off=st.sampled_from([-0.1, 0, 0.1]),
    limit=st.sampled_from([4, 7, 4096]),
)
async def test_nothing_that_came_since_is_left_out_and_little_else_is_shown(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[float, bytes] | str],
    asked: int,
    off: float,
    limit: int,
) -> None:
    line = Line(tmp_path_factory.mktemp("line"))
    before, keeper.MOMENTS_LIMIT = keeper.MOMENTS_LIMIT, limit
    now_s, is_undisturbed = 1000.0, limit > len(steps)
    try:
        for step in steps:
            if isinstance(step, tuple):
                now_s += step[0]
                is_undisturbed = is_undisturbed and step[0] >= 0
                line.say(now_s, step[1])
                continue
            is_undisturbed = False
            moments = line.directory.path / MOMENTS
            if step == "torn" and moments.exists():
                os.truncate(moments, max(0, moments.stat().st_size - 10))
            line.begin()
        if not line.came:
            return
        moment_us = line.came[asked % len(line.came)][0] + int(off * S)
        shown, stored = await line.since((moment_us - BEGUN) / S), await line.stored()
    finally:
        keeper.MOMENTS_LIMIT = before
    whole = b"".join(text for _, text in line.came)
    assert stored == whole[len(whole) - len(stored) :]
    assert stored.endswith(shown)
    ends = list(accumulate(len(text) for _, text in line.came))
    first = next(
        (end - len(text) for end, (at, text) in zip(ends, line.came, strict=True) if at >= moment_us), len(whole)
    )
    begin = len(whole) - len(shown)
    assert begin <= max(first, len(whole) - len(stored))
    if is_undisturbed and begin > len(whole) - len(stored):
        # No line is shown that had ended a second before.
        early = [end for end, (at, _) in zip(ends, line.came, strict=True) if at <= moment_us - S]
        assert b"\n" not in whole[begin : early[-1] - 1 if early else 0]
    assert all(a <= b for a, b in pairwise(ends))
