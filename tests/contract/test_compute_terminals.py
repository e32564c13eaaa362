"""What every compute driver brings to a program that has a terminal in the guest, and from it."""

from __future__ import annotations

import asyncio

import pytest

from aetherscale.actors.compute.driver import TERMINAL_LIMIT, ComputeDriver, Terminal, Window
from aetherscale.actors.compute.model.effects import DiskProvisioned, Ended, GuestReady
from aetherscale.kernel.errors import Reason, Refused
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    BARE,
    PATIENCE_S,
    TINY,
    VM,
    Watcher,
    agent_answers,
    booted,
    ensure,
    provision,
    read_until,
    whole,
)
from tests.support.driver_fixtures import END, driver, watcher, world

__all__ = ["driver", "qemu_world", "tiny_image_file", "watcher", "world"]

SIZE = Window(40, 120)


async def guest(driver: ComputeDriver, watcher: Watcher) -> None:
    """A VM whose agent answers."""
    await booted(driver, TINY, ready="agent")
    await watcher.until(GuestReady)
    await agent_answers(driver)


async def says(terminal: Terminal, typed: str, answer: str) -> str:
    """What a shell writes after a line was typed, up to its answer, which the line does not have."""
    await terminal.send(typed.encode() + b"\r")
    return (await read_until(terminal.output(), answer.encode())).decode()


async def test_a_program_has_a_terminal_of_the_callers_size_and_its_status_is_told(
    driver: ComputeDriver, watcher: Watcher
) -> None:
    await guest(driver, watcher)
    shell = await driver.terminal(VM, ["sh"], SIZE, "xterm")
    await says(shell, "stty size", "40 120")
    shell.resize(Window(1, 1))
    shell.resize(Window(50, 100))
    async with asyncio.timeout(PATIENCE_S):
        while "50 100" not in await says(shell, "stty size; echo do''ne", "done"):
            pass
    await says(shell, "echo kind-''$TERM", "kind-xterm")
    await shell.send(b"exit 7\r")
    await whole(shell.output())
    assert shell.exit_code == 7
    with pytest.raises(Refused) as refused:
        await shell.send(b"x")
    assert refused.value.reason == Reason.CONFLICT
    await shell.close()


async def test_ctrl_c_reaches_the_program_and_not_the_shell_that_began_it(
    driver: ComputeDriver, watcher: Watcher
) -> None:
    await guest(driver, watcher)
    shell = await driver.terminal(VM, ["sh"], SIZE, "xterm")
    # A trap of its own: a shell that is just about to begin a program may miss Ctrl-C.
    await says(shell, "sh -c \"trap 'exit 130' INT; echo be''gin; while :; do sleep 1; done\"", "begin")
    await shell.send(b"\x03")
    await says(shell, "echo status-''$?", "status-130")
    await shell.send(b"exit\r")  # ctrl-d may be lost while the shell takes its line editor up again
    await whole(shell.output())
    assert shell.exit_code == 0
    await shell.close()


async def test_two_terminals_at_once_do_not_mix(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    one, two = await asyncio.gather(*(driver.terminal(VM, ["sh"], SIZE, "xterm") for _ in range(2)))
    await one.send(b"echo from-''one\r")
    await two.send(b"echo from-''two\r")
    said = await read_until(one.output(), b"from-one"), await read_until(two.output(), b"from-two")
    assert b"two" not in said[0]
    assert b"one" not in said[1]
    await one.close()
    await says(two, "echo still-''here", "still-here")
    await two.send(b"exit 3\r")
    await whole(two.output())
    assert two.exit_code == 3
    await two.close()


async def test_a_short_program_is_told_whole(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    for _ in range(3):
        echo = await driver.terminal(VM, ["/bin/echo", "a  b", "$HOME '\"\\"], SIZE, "xterm")
        assert await whole(echo.output()) == b"a  b $HOME '\"\\\r\n"
        assert echo.exit_code == 0
        await echo.close()


async def test_a_caller_who_goes_away_ends_the_output(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    shell = await driver.terminal(VM, ["sh"], SIZE, "xterm")
    await shell.close()
    await whole(shell.output())
    assert shell.exit_code is None


async def test_the_end_of_the_vm_ends_the_output(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    shell = await driver.terminal(VM, ["sh"], SIZE, "xterm")
    await ensure(driver, END, Ended)
    await whole(shell.output())
    assert shell.exit_code is None
    await shell.close()


async def test_a_guest_has_so_many_terminals_and_no_more(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    held = [await driver.terminal(VM, ["sh"], SIZE, "xterm") for _ in range(TERMINAL_LIMIT)]
    with pytest.raises(Refused, match=f"{TERMINAL_LIMIT} terminals in use") as refused:
        await driver.terminal(VM, ["sh"], SIZE, "xterm")
    assert refused.value.reason == Reason.CONFLICT
    await held.pop().close()
    held.append(await driver.terminal(VM, ["sh"], SIZE, "xterm"))
    for terminal in held:
        await terminal.close()


async def test_a_program_that_is_not_there_is_refused(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    with pytest.raises(Refused, match="no such program") as refused:
        await driver.terminal(VM, ["/no/such/program"], SIZE, "xterm")
    assert refused.value.reason == Reason.BAD_REQUEST


async def test_without_an_agent_or_a_process_a_terminal_is_refused(driver: ComputeDriver, watcher: Watcher) -> None:
    await ensure(driver, provision(), DiskProvisioned)
    with pytest.raises(Refused) as at_rest:
        await driver.terminal(VM, ["sh"], SIZE, "xterm")
    await booted(driver, BARE)
    with pytest.raises(Refused) as silent:
        await driver.terminal(VM, ["sh"], SIZE, "xterm")
    assert (at_rest.value.reason, silent.value.reason) == (Reason.CONFLICT, Reason.UNAVAILABLE)
