"""The serial line: many readers, a log that QEMU writes and the node shortens, and no byte twice between the two."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from aetherscale.actors.compute import readers
from aetherscale.actors.compute.qemu import console
from aetherscale.actors.compute.qemu.console import ConsoleLog, SerialLine, stored_log
from aetherscale.actors.compute.qemu.layout import CONSOLE_LOG, VmDirectory
from aetherscale.actors.compute.readers import Reader, Readers
from aetherscale.kernel.errors import Refused

VM = "0123456789abcdef"


async def send_nowhere(data: bytes) -> None:
    """Type into a line that leads nowhere."""


async def drained(reader: Reader) -> bytes:
    """All that is waiting for a reader."""
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


class Qemu:
    """Writes what a guest says to the log and to the line, as QEMU does."""

    def __init__(self, directory: VmDirectory, *, fresh: bool = True) -> None:
        self.log = directory.path / CONSOLE_LOG
        self.line = SerialLine(ConsoleLog(directory), fresh=fresh)

    def log_only(self, data: bytes) -> None:
        with self.log.open("ab") as file:
            file.write(data)

    def say(self, data: bytes) -> None:
        self.log_only(data)
        self.line.feed(data)


@pytest.fixture
def directory(tmp_path: Path) -> VmDirectory:
    directory = VmDirectory(tmp_path, VM)
    directory.make()
    return directory


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "RECENT_BYTES", 100)
    monkeypatch.setattr(console, "RECENT_BYTES", 100)
    monkeypatch.setattr(console, "LOG_KEPT_BYTES", 4000)
    monkeypatch.setattr(console, "LOG_LIMIT_BYTES", 8000)
    monkeypatch.setattr(console, "_LOOK_EVERY_BYTES", 500)


def numbers(first: int, last: int) -> bytes:
    return b"".join(b"%07d " % number for number in range(first, last))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("tail_bytes", [0, 8, 96, 800, 4000, 100_000])
async def test_past_and_present_meet_without_a_gap_and_without_a_byte_twice(
    directory: VmDirectory, tail_bytes: int
) -> None:
    qemu = Qemu(directory)
    qemu.say(numbers(0, 200))
    # QEMU has written this to the log already, and it is on its way through the socket.
    qemu.log_only(numbers(200, 210))
    reader = qemu.line.attach_with_log(tail_bytes)
    qemu.line.feed(numbers(200, 210))
    qemu.say(numbers(210, 220))
    assert await drained(reader) == numbers(0, 220)[max(0, 1600 - tail_bytes) :]


@pytest.mark.usefixtures("small_limits")
async def test_the_log_is_bounded_and_keeps_its_end(directory: VmDirectory) -> None:
    qemu = Qemu(directory)
    for number in range(0, 10_000, 10):
        qemu.say(numbers(number, number + 10))
        assert qemu.log.stat().st_size <= 8000 + 500
    said = b"".join([piece async for piece in stored_log(directory, 1 << 20)])
    assert said == numbers(0, 10_000)[-len(said) :]
    assert len(said) >= 4000
    # Where the log begins now is known: the two still meet.
    assert (await drained(qemu.line.attach_with_log(3000))) == numbers(0, 10_000)[-3000:]


@pytest.mark.usefixtures("small_limits")
async def test_a_log_that_grew_while_the_node_was_away_is_shortened_when_it_is_back(directory: VmDirectory) -> None:
    (directory.path / CONSOLE_LOG).write_bytes(numbers(0, 5000))
    qemu = Qemu(directory, fresh=False)
    assert qemu.log.stat().st_size == 4000
    assert await drained(qemu.line.attach()) == numbers(0, 5000)[-100:]


async def test_a_new_run_begins_with_nothing_on_the_line_and_everything_in_the_log(directory: VmDirectory) -> None:
    (directory.path / CONSOLE_LOG).write_bytes(b"run 1\n")
    qemu = Qemu(directory)
    qemu.say(b"run 2\n")
    assert await drained(qemu.line.attach()) == b"run 2\n"
    assert await drained(qemu.line.attach_with_log(1000)) == b"run 1\nrun 2\n"


async def turns(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def connected(line: SerialLine) -> socket.socket:
    """QEMU's end of a fresh connection to the line."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    await line.connect(ours)
    return theirs


async def test_a_line_outlives_its_connections_and_ends_with_its_process(directory: VmDirectory) -> None:
    loop = asyncio.get_running_loop()
    line = SerialLine(ConsoleLog(directory), fresh=True)
    reader = line.attach()
    output = reader.output()
    async with asyncio.timeout(30):
        first = await connected(line)
        await loop.sock_sendall(first, b"one")
        assert await anext(output) == b"one"
        first.close()
        await turns(5)
        assert not line.is_connected
        sending = loop.create_task(reader.send(b"typed"))
        second = await connected(line)
        assert await loop.sock_recv(second, 100) == b"typed"
        await sending
        third = await connected(line)
        second.close()
        await turns(5)
        assert bool(line.is_connected)
        # The last words of a process are in the socket when it is known to be gone.
        await loop.sock_sendall(third, b"two")
        line.finish()
        third.close()
        assert [piece async for piece in output] == [b"two"]
        with pytest.raises(Refused):
            await reader.send(b"x")
    assert not line.is_connected


async def test_an_attempt_to_connect_that_is_cancelled_leaves_the_line_as_it_was(directory: VmDirectory) -> None:
    loop = asyncio.get_running_loop()
    line = SerialLine(ConsoleLog(directory), fresh=True)
    output = line.attach().output()
    for count in (1, 2):
        ours, theirs = socket.socketpair()
        attempt = loop.create_task(line.connect(ours))
        await turns(count)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        assert attempt.cancelled()
        assert not line.is_connected
        theirs.close()
    async with asyncio.timeout(30):
        last = await connected(line)
        await loop.sock_sendall(last, b"hello")
        assert await anext(output) == b"hello"
        line.close()
        assert [piece async for piece in output] == []
    last.close()


async def test_a_log_is_never_read_or_shortened_through_a_symbolic_link(directory: VmDirectory, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 100)
    (directory.path / CONSOLE_LOG).symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        ConsoleLog(directory).read(0, 10)
    with pytest.raises(OSError, match="symbolic links"):
        ConsoleLog(directory).shorten()
    await asyncio.sleep(0)
