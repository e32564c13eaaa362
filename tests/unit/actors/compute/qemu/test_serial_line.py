"""The serial line: every byte once and in its place, in files of bounded size, whoever reads and whenever.

The keeper is the real one. What QEMU would write into its pipe is written by the tests.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale.actors.compute import readers
from aetherscale.actors.compute.driver import LogRange
from aetherscale.actors.compute.qemu import console, seriallog
from aetherscale.actors.compute.qemu.console import LineReader, SerialLine, stored_log, written_out
from aetherscale.actors.compute.qemu.layout import CONSOLE_LOG, CONSOLE_LOG_BEFORE, CONSOLE_PIPE, VmDirectory
from aetherscale.actors.compute.qemu.seriallog import SerialLog
from aetherscale.actors.compute.readers import Reader, Readers
from aetherscale.kernel.errors import Refused
from tests.support.eventually import asked_until, ended

VM = "0123456789abcdef"
WAIT_S = 60.0


async def send_nowhere(data: bytes) -> None:
    """Type into a line that leads nowhere."""


async def drained(reader: Reader) -> bytes:
    """All that is waiting for a reader of a simulated line."""
    await reader.close()
    return b"".join([piece async for piece in reader.output()])


async def test_a_slow_reader_loses_its_own_oldest_bytes_and_nobody_else_any() -> None:
    line = Readers(send_nowhere)
    slow, quick = line.attach(), line.attach()
    output = quick.output()
    for number in range(100):
        line.feed(b"%04d" % number * 1024)
        assert await anext(output) == b"%04d" % number * 1024
    said = await drained(slow)
    marker, _, rest = said.partition(b"too slow]\r\n")
    assert marker.startswith(b"\r\n[147456 bytes lost")
    assert len(rest) == readers.READER_LIMIT_BYTES
    assert rest.endswith(b"0099" * 1024)


async def test_a_late_reader_gets_the_recent_past_and_no_more_is_kept() -> None:
    line = Readers(send_nowhere)
    line.feed(b"x" * readers.RECENT_BYTES)
    line.feed(b"last")
    said = await drained(line.attach())
    assert len(said) == readers.RECENT_BYTES
    assert said.endswith(b"xlast")


async def test_a_reader_of_a_line_that_has_ended_gets_the_past_and_the_end() -> None:
    line = Readers(send_nowhere)
    line.feed(b"bye")
    line.end()
    assert [piece async for piece in line.attach().output()] == [b"bye"]


# --- the real line ---------------------------------------------------------------------------------------------------


class Qemu:
    """Writes what a guest says into the pipe, as QEMU does, and then ends."""

    def __init__(self, directory: VmDirectory, *, fresh: bool = True) -> None:
        self.directory = directory
        self.line = SerialLine(directory, fresh=fresh)
        self._pipe = self.line.log.writing_end()
        os.set_blocking(self._pipe, True)

    def say(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._pipe, data) :]

    async def end(self) -> None:
        """Hang up, and wait until the keeper has done so."""
        os.close(self._pipe)
        self.line.finish()
        await written_out(self.line.log)

    async def written(self, text: bytes) -> None:
        """Wait until the log ends with this."""

        async def is_there() -> bool:
            return (await stored(self.line.log)).endswith(text)

        await asked_until(is_there)


async def stored(log: SerialLog, tail_bytes: int = 1 << 30) -> bytes:
    return b"".join([piece async for piece in stored_log(log, LogRange(tail_bytes))])


async def rest(reader: LineReader) -> bytes:
    """All that a reader gets, to the end of the line."""
    async with asyncio.timeout(WAIT_S):
        return b"".join([piece async for piece in reader.output()])


async def until(output: AsyncIterator[bytes], count: int) -> bytes:
    said = b""
    async with asyncio.timeout(WAIT_S):
        while len(said) < count:
            said += await anext(output)
    return said


@pytest.fixture
def directory(tmp_path: Path) -> VmDirectory:
    directory = VmDirectory(tmp_path, VM)
    directory.make()
    return directory


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "RECENT_BYTES", 100)
    monkeypatch.setattr(console, "READER_LIMIT_BYTES", 1000)
    monkeypatch.setattr(seriallog, "LOG_LIMIT_BYTES", 8000)
    monkeypatch.setattr(seriallog, "PIECE_BYTES", 333)


def numbers(first: int, last: int) -> bytes:
    return b"".join(b"%07d " % number for number in range(first, last))


def sizes(directory: VmDirectory) -> list[int]:
    names = (CONSOLE_LOG_BEFORE, CONSOLE_LOG)
    return [(directory.path / name).stat().st_size for name in names if (directory.path / name).exists()]


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("tail_bytes", [0, 1, 8, 96, 800, 4000, 4001, 100_000])
async def test_past_and_present_meet_without_a_gap_and_without_a_byte_twice(
    directory: VmDirectory, tail_bytes: int
) -> None:
    qemu = Qemu(directory)
    qemu.say(numbers(0, 700))  # one file and a half
    await qemu.written(numbers(699, 700))
    reader = qemu.line.follow(LogRange(tail_bytes))
    assert reader.past_bytes == min(tail_bytes, 5600)
    qemu.say(numbers(700, 900))
    await qemu.end()
    assert await rest(reader) == numbers(0, 900)[max(0, 5600 - tail_bytes) :]


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("count", [499, 500, 501, 999, 1000, 1001, 1499, 1500, 10_000])
async def test_the_log_is_bounded_and_keeps_its_end(directory: VmDirectory, count: int) -> None:
    qemu = Qemu(directory)
    qemu.say(numbers(0, count))
    await qemu.end()
    assert max(sizes(directory)) <= 4000
    said = await stored(qemu.line.log)
    assert said == numbers(0, count)[-len(said) :]
    assert len(said) >= min(4000, 8 * count)
    assert await stored(qemu.line.log, 3000) == numbers(0, count)[-3000:]


@pytest.mark.usefixtures("small_limits")
async def test_the_bound_holds_while_no_node_is_there(directory: VmDirectory) -> None:
    qemu = Qemu(directory)
    node = qemu.line
    qemu.line = SerialLine(directory, fresh=False)
    node.close()
    for number in range(0, 2500, 100):
        qemu.say(numbers(number, number + 100))
        assert sum(sizes(directory)) <= 8000
    await qemu.end()
    assert (await stored(qemu.line.log)).endswith(numbers(2000, 2500))


@pytest.mark.usefixtures("small_limits")
async def test_a_follower_gets_every_byte_in_its_order_through_all_files(directory: VmDirectory) -> None:
    qemu = Qemu(directory)
    output = qemu.line.follow(LogRange(0)).output()
    said = b""
    for number in range(0, 2500, 50):
        qemu.say(numbers(number, number + 50))
        said += await until(output, 400)
    assert said == numbers(0, 2500)
    await qemu.end()


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("count", [0, 1, 600])
async def test_a_follower_may_begin_so_many_lines_before_the_end(directory: VmDirectory, count: int) -> None:
    lines = [b"%06d\n" % number for number in range(800)]
    qemu = Qemu(directory)
    qemu.say(b"".join(lines[:700]))  # one file and a part of the next
    await qemu.written(lines[699])
    reader = qemu.line.follow(LogRange(lines=count))
    assert reader.past_bytes == 7 * count
    qemu.say(b"".join(lines[700:]))
    await qemu.end()
    assert await rest(reader) == b"".join(lines[700 - count :])
    assert b"".join([piece async for piece in stored_log(qemu.line.log, LogRange(lines=5))]) == b"".join(lines[-5:])


@pytest.mark.usefixtures("small_limits")
async def test_a_follower_that_is_left_behind_is_told_and_goes_on_with_the_oldest_there_is(
    directory: VmDirectory,
) -> None:
    qemu = Qemu(directory)
    qemu.say(numbers(0, 1))
    await qemu.written(numbers(0, 1))
    reader = qemu.line.follow(LogRange(8))
    qemu.say(numbers(1, 2500))
    await qemu.end()
    said = await rest(reader)
    before, marker, after = said.partition(b"\r\n[bytes lost: this reader was too slow]\r\n")
    assert marker
    assert before == numbers(0, 2500)[: len(before)]
    assert after == numbers(0, 2500)[-len(after) :]
    assert len(after) >= 4000


@pytest.mark.usefixtures("small_limits")
async def test_a_console_shows_what_is_and_counts_what_it_left_out(directory: VmDirectory) -> None:
    qemu = Qemu(directory)
    reader = qemu.line.attach()
    qemu.say(numbers(0, 300))
    await qemu.end()
    assert await rest(reader) == b"\r\n[1400 bytes lost: this reader was too slow]\r\n" + numbers(0, 300)[-1000:]


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("count", [125, 126])
async def test_a_console_that_is_behind_by_just_the_limit_loses_nothing(directory: VmDirectory, count: int) -> None:
    qemu = Qemu(directory)
    reader = qemu.line.attach()
    qemu.say(numbers(0, count))
    await qemu.end()
    assert (b"lost" in await rest(reader)) == (count > 125)


@pytest.mark.usefixtures("small_limits")
async def test_a_log_of_an_older_version_is_cut_to_the_bound(directory: VmDirectory) -> None:
    (directory.path / CONSOLE_LOG).write_bytes(numbers(0, 2500))
    qemu = Qemu(directory, fresh=False)
    qemu.say(b"new")
    await qemu.end()
    assert await stored(qemu.line.log) == numbers(0, 2500)[-4000:] + b"new"


@pytest.mark.usefixtures("small_limits")
async def test_who_attaches_gets_the_recent_past_of_this_run_and_no_more(directory: VmDirectory) -> None:
    (directory.path / CONSOLE_LOG).write_bytes(b"run 1\n")
    qemu = Qemu(directory)
    assert qemu.line.attach().past_bytes == 0
    qemu.say(b"run 2\n")
    await qemu.written(b"run 2\n")
    assert qemu.line.attach().past_bytes == 6
    qemu.say(numbers(0, 2000))
    await qemu.written(numbers(1999, 2000))
    late = qemu.line.attach()
    assert late.past_bytes == 100
    await qemu.end()
    assert await rest(late) == numbers(0, 2000)[-100:]


async def test_a_new_run_begins_with_nothing_on_the_line_and_everything_in_the_log(directory: VmDirectory) -> None:
    first = Qemu(directory)
    first.say(b"run 1\n")
    await first.end()
    qemu = Qemu(directory)
    qemu.say(b"run 2\n")
    await qemu.written(b"run 2\n")
    console_reader, follower = qemu.line.attach(), qemu.line.follow(LogRange(1000))
    await qemu.end()
    assert await rest(console_reader) == b"run 2\n"
    assert await rest(follower) == b"run 1\nrun 2\n"


@pytest.mark.usefixtures("small_limits")
@settings(max_examples=8, deadline=None)
@given(pieces=st.lists(st.binary(min_size=1, max_size=3000), max_size=12), tail=st.integers(0, 9000))
def test_bytes_of_any_kind_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], tail: int
) -> None:
    async def there_and_back() -> None:
        place = VmDirectory(tmp_path_factory.mktemp("line"), VM)
        place.make()
        qemu = Qemu(place)
        for piece in pieces:
            qemu.say(piece)
        await qemu.end()
        said = await stored(qemu.line.log, tail)
        whole = b"".join(pieces)
        assert said == whole[len(whole) - len(said) :]
        assert len(said) >= min(tail, len(whole), 4000)
        assert len(said) <= tail

    asyncio.run(there_and_back())


async def test_a_reader_of_a_line_that_is_let_go_of_ends(directory: VmDirectory) -> None:
    qemu = Qemu(directory)
    reader = qemu.line.attach()
    waiting = asyncio.ensure_future(rest(reader))
    await asyncio.sleep(0)
    qemu.line.close()
    assert await waiting == b""
    with pytest.raises(Refused, match="the VM has ended"):
        await reader.send(b"x")
    await qemu.end()


async def test_the_keeper_is_used_by_the_next_node_and_ends_with_the_guest(directory: VmDirectory) -> None:
    qemu = Qemu(directory)
    keeper = qemu.line.log.keeper
    assert keeper is not None
    qemu.line.close()
    next_node = SerialLine(directory, fresh=False)
    os.close(next_node.log.writing_end())
    assert next_node.log.keeper is None
    qemu.say(b"still the same")
    assert next_node.log.is_kept()
    await qemu.end()
    assert not next_node.log.is_kept()
    await ended(keeper)
    assert await stored(next_node.log) == b"still the same"


async def test_a_keeper_that_was_killed_is_replaced_when_a_node_connects(directory: VmDirectory) -> None:
    qemu = Qemu(directory)
    qemu.say(b"before ")
    await qemu.written(b"before ")
    keeper = qemu.line.log.keeper
    assert keeper is not None
    os.killpg(keeper, signal.SIGKILL)
    await written_out(qemu.line.log)
    again = Qemu(directory, fresh=False)
    again.say(b"after")
    await again.end()
    assert await stored(again.line.log) == b"before after"


async def test_files_of_the_log_are_the_owners_alone(directory: VmDirectory) -> None:
    qemu = Qemu(directory)
    qemu.say(b"x")
    await qemu.end()
    for name in (CONSOLE_LOG, CONSOLE_PIPE):
        assert stat.S_IMODE((directory.path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", [CONSOLE_LOG, CONSOLE_LOG_BEFORE])
async def test_a_log_is_never_read_through_a_symbolic_link(directory: VmDirectory, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 100)
    (directory.path / name).symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        await stored(SerialLog(directory))


async def test_a_file_in_the_place_of_the_pipe_is_not_written_to(directory: VmDirectory, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    os.link(victim, directory.path / CONSOLE_PIPE)
    qemu = Qemu(directory)
    qemu.say(b"hello")
    await qemu.end()
    assert victim.read_bytes() == b"mine"
    assert await stored(qemu.line.log) == b"hello"


async def test_a_log_that_is_not_written_to_its_end_is_not_waited_for_for_ever(
    directory: VmDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LAST_WORDS_S", 0.05)
    qemu = Qemu(directory)
    reader = qemu.line.attach()
    qemu.line.finish()  # its pipe is still open: somebody else has inherited it
    async with asyncio.timeout(WAIT_S):
        assert await rest(reader) == b""
        await written_out(qemu.line.log)
    await qemu.end()
