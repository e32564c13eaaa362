"""The serial line: readers get every byte once and in its place, whenever they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from aetherscale.actors.compute.driver import LogRange
from aetherscale.actors.compute.qemu import console
from aetherscale.actors.compute.qemu.console import stored_log, written_out
from aetherscale.actors.compute.qemu.layout import CONSOLE_LOG, VmDirectory
from aetherscale.kernel.errors import Refused
from tests.support.serial_lines import WAIT_S, Qemu, directory, numbers, rest, small_limits

__all__ = ["directory", "small_limits"]


async def until(output: AsyncIterator[bytes], count: int) -> bytes:
    said = b""
    async with asyncio.timeout(WAIT_S):
        while len(said) < count:
            said += await anext(output)
    return said


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
async def test_who_attaches_gets_the_recent_past_of_this_run_and_no_more(directory: VmDirectory) -> None:
    (directory.path / CONSOLE_LOG).write_bytes(b"run 1\n")
    qemu = Qemu(directory)
    assert qemu.line.attach().past_bytes == 0
    qemu.say(b"run 2\n")
    await qemu.written(b"run 2\n")
    assert qemu.line.attach().past_bytes == 6
    assert qemu.line.attach(1 << 20).past_bytes == 6, "no other run is told"
    assert qemu.line.attach(0).past_bytes == 0
    qemu.say(numbers(0, 2000))
    await qemu.written(numbers(1999, 2000))
    late = qemu.line.attach(100)
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
