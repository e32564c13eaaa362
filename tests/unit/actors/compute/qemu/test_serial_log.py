"""The serial log and its keeper: the files are of bounded size, the owner's alone, and outlive node and keeper."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale.actors.compute.qemu.console import SerialLine, written_out
from aetherscale.actors.compute.qemu.layout import CONSOLE_LOG, CONSOLE_LOG_BEFORE, CONSOLE_PIPE, VmDirectory
from aetherscale.actors.compute.qemu.seriallog import SerialLog
from tests.support.eventually import ended
from tests.support.serial_lines import VM, Qemu, directory, numbers, small_limits, stored

__all__ = ["directory", "small_limits"]


def sizes(directory: VmDirectory) -> list[int]:
    names = (CONSOLE_LOG_BEFORE, CONSOLE_LOG)
    return [(directory.path / name).stat().st_size for name in names if (directory.path / name).exists()]


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
async def test_a_log_of_an_older_version_is_cut_to_the_bound(directory: VmDirectory) -> None:
    (directory.path / CONSOLE_LOG).write_bytes(numbers(0, 2500))
    qemu = Qemu(directory, fresh=False)
    qemu.say(b"new")
    await qemu.end()
    assert await stored(qemu.line.log) == numbers(0, 2500)[-4000:] + b"new"


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
