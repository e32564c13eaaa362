"""What a guest tells of its init script, by guests that lie, flood and repeat themselves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aetherscale.actors.compute.model.firstboot import MAX_OUTPUT_BYTES
from aetherscale.actors.compute.qemu.ports import INIT_LINE_BYTES, InitPort, told_end
from tests.support.eventually import asked_until

PATIENCE_S = 30.0


def line(outcome: str, status: object, output: bytes = b"") -> bytes:
    return b"%s %s %s" % (outcome.encode(), str(status).encode(), base64.b64encode(output))


def test_an_end_is_read() -> None:
    assert told_end(line("ended", 0, b"done\n")) == ("ended", 0, "done\n")
    assert told_end(line("ended", 255)) == ("ended", 255, "")
    assert told_end(line("interrupted", "-")) == ("interrupted", None, "")
    assert told_end(line("not-run", "-", b"no disk\n") + b"\r") == ("not-run", None, "no disk\n")
    assert told_end(line("ended", 1, b"x" * MAX_OUTPUT_BYTES)) == ("ended", 1, "x" * MAX_OUTPUT_BYTES)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"ready",
        b"ended",
        b"ended 0",
        b"ended - ",
        b"ended 256 ",
        b"ended -1 ",
        b"ended 0000 ",
        b"lost - ",
        b"interrupted 0 ",
        b"ended 0 =",
        b"ended 0 a",
        b"ended 0 YQ==\0",
        b"ended 0 YQ== YQ==",
        b" ended 0 ",
        b"\xff" * 100,
        line("ended", 0, b"x" * (MAX_OUTPUT_BYTES + 1)),
        line("ended", 0, b"x" * INIT_LINE_BYTES),
        b"ended 0 " + b"[" * 65536,
    ],
)
def test_what_is_no_end_of_a_script_is_nothing(said: bytes) -> None:
    assert told_end(said) is None


@pytest.fixture
async def port() -> AsyncIterator[tuple[InitPort, socket.socket, list[Any]]]:
    told: list[Any] = []
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    made = InitPort(lambda *end: told.append(end))
    await asyncio.get_running_loop().create_unix_connection(lambda: made, sock=ours)
    yield made, theirs, told
    made.close()
    theirs.close()


async def heard(told: list[Any]) -> None:
    async def look() -> bool:
        await asyncio.sleep(0)
        return bool(told)

    await asked_until(look, PATIENCE_S)


def fill(guest: socket.socket) -> int:
    """Send until the kernel takes no more; how many bytes it took."""
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            taken += guest.send(b"x" * 4096)
    return taken


async def test_the_first_end_counts_and_nothing_is_read_after_it(
    port: tuple[InitPort, socket.socket, list[Any]],
) -> None:
    made, guest, told = port
    loop = asyncio.get_running_loop()
    made.ask()
    assert await loop.sock_recv(guest, 100) == b"?\n"
    await loop.sock_sendall(guest, b"nonsense\n" + line("ended", 7, b"a") + b"\n" + line("ended", 0, b"b") + b"\n")
    await heard(told)
    # What nobody reads the kernel keeps up to a bound: then the guest has to wait, for ever.
    assert fill(guest) > 0
    made.resume()
    for _ in range(100):
        await asyncio.sleep(0)
    assert fill(guest) == 0
    assert told == [("ended", 7, "a")]


async def test_a_line_that_comes_in_pieces_is_one(port: tuple[InitPort, socket.socket, list[Any]]) -> None:
    made, _, told = port
    for piece in (b"x\nen", b"ded 3", b" YQ", b"==\n"):
        made.received(piece)
    assert told == [("ended", 3, "a")]


async def test_a_guest_that_floods_is_not_kept(port: tuple[InitPort, socket.socket, list[Any]]) -> None:
    made, _, told = port
    for _ in range(1000):
        made.received(b"x" * 65536)
    assert len(made._line) <= INIT_LINE_BYTES + 1
    made.received(b"\n" + line("ended", 0) + b"\n")
    assert told == [("ended", 0, "")]
