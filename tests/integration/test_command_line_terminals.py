"""The terminal of who types `vm exec -it`, on a real guest: as if the program ran here, and always restored."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.eventually import asked_until
from tests.support.node import PATIENCE_S, ROOT, RunningNode
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def aetherscale(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "aetherscale", *words)


@pytest.fixture
async def terminal() -> AsyncIterator[Terminal]:
    made = Terminal()
    yield made
    await made.close()


async def until_exec(node: RunningNode, argv: list[str], status: int) -> None:
    """The same through the command line."""

    async def ask() -> bool:
        return (await node.cli("vm", "exec", "web", "--", *argv))[0] == status

    await asked_until(ask, PATIENCE_S)


async def test_exec_on_a_terminal_is_as_if_the_program_ran_here(node: RunningNode, terminal: Terminal) -> None:
    await made(node)
    before = terminal.mode
    for step in (shell_on_a_terminal, program_that_floods, ways_to_leave, ends_of_a_program, end_of_the_vm):
        await step(node, terminal)
        assert terminal.mode == before


async def made(node: RunningNode) -> None:
    status, _, err = await node.cli("vm", "create", "web", "--image", "tiny", "--memory", "192M")
    assert status == 0, err
    await until_exec(node, ["true"], 0)


async def run(node: RunningNode, terminal: Terminal, *words: str) -> None:
    await terminal.start(*aetherscale("vm", "exec", "-it", "web", "--", *words), env=node.environment)


async def shell_on_a_terminal(node: RunningNode, terminal: Terminal) -> None:
    """Keys, Ctrl-C, the size of the window, and the exit status."""
    before = terminal.mode
    await run(node, terminal, "sh")
    await terminal.until("# ")
    assert terminal.mode != before, "it is raw"
    terminal.type("stty size; echo $TERM\r")
    await terminal.until("40 120", "xterm-256color")
    terminal.type("sh -c \"trap 'stty size' WINCH; echo wait''ing; while :; do sleep 1; done\"\r")
    await terminal.until("waiting")
    terminal.resize(30, 90)
    await terminal.until("waiting", "30 90")
    terminal.resize(25, 70)
    await terminal.until("30 90", "25 70")
    # A trap of its own: a shell that is just about to begin a program may miss Ctrl-C.
    terminal.type("\x03sh -c \"trap 'exit 130' INT; echo be''gin; while :; do sleep 1; done\"\r")
    await terminal.until("begin")
    terminal.type("\x03echo status-''$?\r")
    await terminal.until("status-130")
    terminal.type("exit 7\r")
    assert await terminal.end() == 7


async def program_that_floods(node: RunningNode, terminal: Terminal) -> None:
    """Ctrl-C is heard whatever the program writes."""
    await run(node, terminal, "yes")
    await terminal.until("y\r\n" * 10_000)
    terminal.type("\x03")
    assert await terminal.end() == 130


async def ways_to_leave(node: RunningNode, terminal: Terminal) -> None:
    """The key that detaches, a window that is closed and a signal hang up on the program, and restore the terminal."""
    before = terminal.mode
    ways: tuple[tuple[Callable[[], None], int], ...] = (
        (lambda: terminal.type("\x1d"), 1),
        (terminal.hang_up, 129),
        (lambda: terminal.send(signal.SIGTERM), 143),
    )
    for leave, status in ways:
        await run(node, terminal, "sh", "-c", "echo ra''w; exec tail -f /dev/null")
        await terminal.until("raw")
        assert terminal.mode != before
        await until_exec(node, ["pidof", "tail"], 0)
        leave()
        assert await terminal.end() == status
        assert terminal.mode == before
        assert ("left 'sh' before it had ended; it was hung up" in terminal.said) == (status == 1)
        await until_exec(node, ["pidof", "tail"], 1)


async def ends_of_a_program(node: RunningNode, terminal: Terminal) -> None:
    """One that a signal ends, and one that is not there."""
    await run(node, terminal, "sh", "-c", "kill -9 $$")
    assert await terminal.end() == 137
    await run(node, terminal, "nosuch")
    assert await terminal.end() == 127
    assert "the guest could not run 'nosuch': no such program" in terminal.said


async def end_of_the_vm(node: RunningNode, terminal: Terminal) -> None:
    await run(node, terminal, "sh")
    await terminal.until("# ")
    assert (await node.cli("vm", "stop", "web", "--kill"))[0] == 0
    assert await terminal.end() == 1
    assert "'sh' has lost its terminal, and how it ended is not known" in terminal.said


async def test_the_end_of_the_node_restores_the_terminal_and_the_next_one_hangs_up(
    node: RunningNode, terminal: Terminal
) -> None:
    await made(node)
    before = terminal.mode

    async def stop_before_it_is_heard() -> None:
        """The client learns of the node's last words, of a key and of the lost connection at once."""
        terminal.send(signal.SIGSTOP)
        await node.stop()
        terminal.type("x")
        terminal.send(signal.SIGCONT)

    stopping = "'sh' has lost its terminal, and how it ended is not known: the node is stopping"
    for end, status, told in (
        (node.kill, 4, "error: the connection to the node was lost"),
        (node.stop, 1, stopping),
        (stop_before_it_is_heard, 1, stopping),
    ):
        await run(node, terminal, "sh", "-c", "echo ra''w; exec tail -f /dev/null")
        await terminal.until("raw")
        assert terminal.mode != before
        await until_exec(node, ["pidof", "tail"], 0)
        await end()
        assert await terminal.end() == status
        assert told in terminal.said
        assert terminal.mode == before
        await node.start()
        await until_exec(node, ["pidof", "tail"], 1)


async def piped(node: RunningNode, said: bytes, *words: str) -> tuple[int | None, bytes, bytes]:
    """`vm exec` without a terminal: its status, and what it wrote to stdout and to stderr."""
    process = await asyncio.create_subprocess_exec(
        *aetherscale("vm", "exec", *words), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=node.environment, cwd=ROOT
    )
    out, err = await asyncio.wait_for(process.communicate(said), PATIENCE_S)
    return process.returncode, out, err


async def test_without_a_terminal_a_shell_runs_what_is_piped_to_it(node: RunningNode) -> None:
    await made(node)
    status, out, err = await piped(node, b"uptime\nexit 3\n", "-i", "web", "sh")
    assert (status, err) == (3, b"")
    assert b"load average" in out


async def test_a_stdin_that_is_no_terminal_is_refused_as_docker_does(node: RunningNode) -> None:
    for options in ("-t", "-it"):
        status, out, err = await piped(node, b"exit 3\n", options, "web", "--", "sh")
        assert (status, out) == (2, b"")
        assert b"the input device is not a TTY" in err
