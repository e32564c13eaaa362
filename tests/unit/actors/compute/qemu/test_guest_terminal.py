"""Programs on terminals in a guest that may lie, hang or fall silent, and a QEMU that does as it is told."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aetherscale.actors.compute.driver import TERMINAL_LIMIT, ExecResult, Window
from aetherscale.actors.compute.qemu import outputs, portprograms, terminals
from aetherscale.actors.compute.qemu.plugs import Plugs
from aetherscale.actors.compute.qemu.session import Rejected
from aetherscale.actors.compute.qemu.terminals import GuestTerminal, Terminals
from aetherscale.bus.refusals import CODES, hint
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused

PATIENCE_S = 30.0
SIZE = Window(24, 80)
PID = 77


class Agent:
    """An agent that starts everything; what it starts may never end, and what it is asked may never be answered."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.asked: list[list[str]] = []
        self.end: ExecResult | None = None
        self.hangs = False
        self.refuses: Refused | None = None

    async def start(self, argv: list[str]) -> int:
        if self.refuses is not None:
            raise self.refuses
        self.started = argv
        return PID

    async def ended(self, pid: int) -> ExecResult:
        if self.end is None:
            await asyncio.Event().wait()
        assert self.end is not None
        return self.end

    async def execute(self, argv: list[str], timeout_s: float) -> ExecResult:
        self.asked.append(argv)
        if self.hangs:
            raise Refused(Reason.DEADLINE, f"not within {timeout_s} s")
        return ExecResult(0, None, b"", b"", truncated=False)


class Qemu:
    """What was asked of it; and the guest's end of the one port."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.guest: socket.socket | None = None
        self.rejects = ""
        self.holds: set[str] = set()
        """The descriptors that it was given and has not used."""

    async def execute(self, command: str, **arguments: Any) -> None:
        self.asked.append(command)
        if command == self.rejects:
            raise Rejected("no")
        if command == "getfd":
            self.holds.add(arguments["fdname"])
        elif command == "chardev-add":
            self.holds.remove(arguments["backend"]["data"]["addr"]["data"]["str"])
        elif command == "closefd" and arguments["fdname"] not in self.holds:
            raise Rejected("File descriptor named so not found")
        elif command == "closefd":
            self.holds.remove(arguments["fdname"])

    async def give(self, descriptor: int, name: str) -> None:
        self.close()
        self.guest = socket.socket(fileno=os.dup(descriptor))
        await self.execute("getfd", fdname=name)

    def close(self) -> None:
        if self.guest is not None:
            self.guest.close()


class World:
    def __init__(self) -> None:
        self.agent, self.qemu, self.tasks = Agent(), Qemu(), Tasks("test")
        self.terminals = Terminals(Plugs("vm", self.qemu.execute, self.qemu.give), self.tasks)

    async def open(self) -> GuestTerminal:
        return await self.terminals.open(self.agent, ["sh"], SIZE, "xterm")  # type: ignore[arg-type]

    async def begun(self) -> GuestTerminal:
        """A terminal whose program has said that it has begun."""
        opening = asyncio.ensure_future(self.open())
        while not self.agent.started:  # noqa: ASYNC110
            await asyncio.sleep(0)
        self.say(b"\x1e%s+/dev/pts/3\x1e" % self.token)
        async with asyncio.timeout(PATIENCE_S):
            return await opening

    @property
    def token(self) -> bytes:
        return self.agent.started[-3].encode()

    def say(self, data: bytes) -> None:
        assert self.qemu.guest is not None
        self.qemu.guest.sendall(data)


@pytest.fixture
async def guest(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(portprograms, "_HELP_LIMIT_S", 0.0)
    monkeypatch.setattr(terminals, "_RESIZE_LIMIT_S", 0.0)
    made = World()
    yield made
    await made.tasks.close()
    made.qemu.close()


async def whole(terminal: GuestTerminal) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return b"".join([piece async for piece in terminal.output()])


@pytest.mark.parametrize("turns", range(12))
async def test_one_that_is_cancelled_while_it_is_opened_is_unplugged(guest: World, turns: int) -> None:
    opening = asyncio.ensure_future(guest.open())
    for _ in range(turns):
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert guest.qemu.holds == set()
    assert len(guest.terminals._all) == 0
    assert guest.qemu.asked.count("device_add") <= guest.qemu.asked.count("device_del")
    every = []
    for _ in range(TERMINAL_LIMIT):
        guest.agent.started = []
        every.append(await guest.begun())
    for terminal in every:
        await terminal.close()


async def test_the_status_comes_after_the_last_byte_in_whatever_pieces(guest: World) -> None:
    terminal = await guest.begun()
    reading = asyncio.ensure_future(whole(terminal))
    for byte in b"a\x1eb\x1e%s-x\x1e%s-7\x1e" % (guest.token, guest.token):
        guest.say(bytes([byte]))
        await asyncio.sleep(0)
    assert await reading == b"a\x1eb\x1e%s-x" % guest.token
    assert terminal.exit_code == 7
    await terminal.close()
    assert guest.qemu.asked[-2:] == ["device_del", "chardev-remove"]


async def test_what_looks_like_a_status_and_is_none_is_output(guest: World) -> None:
    terminal = await guest.begun()
    guest.say(b"\x1e%s-1234\x1e" % guest.token + b"x" * 100)
    output = terminal.output()
    said = b""
    async with asyncio.timeout(PATIENCE_S):
        while not said.endswith(b"x" * 100):
            said += await anext(output)
    assert said == b"\x1e%s-1234\x1e" % guest.token + b"x" * 100
    assert terminal.exit_code is None
    await terminal.close()


async def test_a_program_that_never_begins_is_given_up_and_its_port_taken_out(
    guest: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portprograms, "START_LIMIT_S", 0.05)
    with pytest.raises(Refused, match="has not begun within") as refused:
        await guest.open()
    assert refused.value.reason == Reason.DEADLINE
    assert guest.qemu.asked[-2:] == ["device_del", "chardev-remove"], "which hangs up"


async def test_an_agent_that_has_fallen_silent_is_not_waited_for(guest: World) -> None:
    terminal = await guest.begun()
    guest.agent.hangs = True
    async with asyncio.timeout(PATIENCE_S):
        await terminal.close()
    assert guest.qemu.asked[-2:] == ["device_del", "chardev-remove"]
    assert await whole(terminal) == b""
    assert terminal.exit_code is None


async def test_a_port_that_is_closed_without_a_status_ends_after_its_last_words(
    guest: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "LAST_WORDS_S", 0.05)
    terminal = await guest.begun()
    reading = asyncio.ensure_future(whole(terminal))
    await asyncio.sleep(0)
    guest.say(b"last words")
    guest.terminals.port_closed("terminal-" + guest.token.decode())
    assert await reading == b"last words"
    assert terminal.exit_code is None
    await terminal.close()


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        (b"no-program\n", 400, "the guest could not run 'sh': no such program"),
        (b"no-script\n", 501, "the guest has no `script` of util-linux"),
        (b"no-stty\n", 501, "the guest has no `stty`"),
        (b"no-port\n", 501, "its kernel has not found the port"),
    ],
)
async def test_what_the_guest_lacks_is_told(guest: World, said: bytes, code: int, message: str) -> None:
    guest.agent.end = ExecResult(1, None, b"", said, truncated=False)
    with pytest.raises(Refused, match=message) as refused:
        await guest.open()
    assert CODES[refused.value.reason] == code
    assert guest.qemu.asked[-2:] == ["device_del", "chardev-remove"]


@pytest.mark.parametrize("command", ["getfd", "chardev-add", "device_add"])
async def test_a_port_that_cannot_be_plugged_in_leaves_nothing_in_qemu(guest: World, command: str) -> None:
    guest.qemu.rejects = command
    for _ in range(TERMINAL_LIMIT + 1):  # it takes no place either
        with pytest.raises(Refused, match="could be plugged into the VM: it was refused") as refused:
            await guest.open()
        assert (refused.value.reason, refused.value.retryable) == (Reason.UNAVAILABLE, True)
    assert guest.qemu.holds == set()
    assert guest.agent.started == []


@pytest.mark.parametrize("said", ["could not run '/bin/sh': No such file", "could not run '/bin/sh': it is disabled"])
async def test_a_guest_without_a_shell_is_refused_with_what_it_needs(guest: World, said: str) -> None:
    guest.agent.refuses = Refused(Reason.BAD_REQUEST, said, field="command")
    with pytest.raises(Refused, match=f"cannot have a terminal in this guest: {said}") as refused:
        await guest.open()
    assert (refused.value.reason, refused.value.field) == (Reason.NOT_IMPLEMENTED, "")
    assert "/bin/sh" in hint(refused.value.remedy)
    assert guest.qemu.asked[-2:] == ["device_del", "chardev-remove"]


async def test_an_agent_that_does_not_answer_is_told_as_such(guest: World) -> None:
    guest.agent.refuses = Refused(Reason.UNAVAILABLE, "no answer from the guest agent", retryable=True)
    with pytest.raises(Refused, match="no answer from the guest agent") as refused:
        await guest.open()
    assert refused.value.reason == Reason.UNAVAILABLE
