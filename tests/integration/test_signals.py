"""Commands that are ended by a signal: the status that a shell expects, not a word too much, and nothing left over."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import good, simulated_node
from tests.support.eventually import asked_until
from tests.support.node import PATIENCE_S, ROOT, RunningNode
from tests.support.terminal import Terminal

pytestmark = pytest.mark.integration

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
async def node(make_node: MakeNode, tmp_path: Path) -> RunningNode:
    """A node with simulated guests and one VM."""
    running = await simulated_node(make_node, tmp_path)
    await good(running, "vm", "create", "web", "--image", "blank")
    return running


@pytest.fixture
async def terminal() -> AsyncIterator[Terminal]:
    made = Terminal()
    yield made
    await made.close()


async def begun(node: RunningNode, *words: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aetherscale", *words),
        stdin=PIPE, stdout=PIPE, stderr=PIPE, env=node.environment, cwd=ROOT,
    )  # fmt: skip


async def ended(process: Process) -> tuple[int, str]:
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, err.decode()


@pytest.mark.parametrize("number", SIGNALS)
async def test_what_follows_ends_with_the_status_of_the_signal_or_well_on_ctrl_c(
    node: RunningNode, number: signal.Signals
) -> None:
    for words in (("events", "tail", "--after", "0"), ("vm", "logs", "web", "-f"), ("vm", "console", "web")):
        process = await begun(node, *words)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.read(1), PATIENCE_S)
        process.send_signal(signal.SIGTSTP)
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        status, err = await ended(process)
        follows = number == signal.SIGINT and "console" not in words
        assert status == (0 if follows else 128 + number), words
        assert "Traceback" not in err
        assert "error" not in err


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_wait_that_is_ended_says_no_more_than_before(node: RunningNode, number: signal.Signals) -> None:
    process = await begun(node, "vm", "wait", "web", "--for", "stopped")
    assert process.stderr is not None
    assert b"ready" in await asyncio.wait_for(process.stderr.readline(), PATIENCE_S)
    process.send_signal(number)
    status, err = await ended(process)
    assert status == 128 + number
    # A signal that comes while the line is written may have it written once more.
    assert [line for line in err.splitlines() if not line.startswith("web: ready")] == []


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_node_ends_tidily(make_node: MakeNode, number: signal.Signals) -> None:
    node = make_node("--simulated")
    await node.start()
    assert await node._end(number) == 0
    assert not (node.state_dir / "events.db-wal").exists(), "it is checkpointed"


async def test_a_signal_that_is_ignored_stays_so(node: RunningNode) -> None:
    process = await asyncio.create_subprocess_exec(
        *("nohup", sys.executable, "-m", "aetherscale", "vm", "logs", "web", "-f"),
        stdin=PIPE, stdout=PIPE, stderr=PIPE, env=node.environment, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    before = await asyncio.wait_for(process.stdout.read(1), PATIENCE_S)
    process.send_signal(signal.SIGHUP)
    await good(node, "vm", "stop", "web", "--kill")
    rest, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert (process.returncode, (before + rest).decode()) == (0, await good(node, "vm", "logs", "web"))


async def test_a_console_that_is_stopped_gives_the_terminal_back_and_takes_it_again(
    node: RunningNode, terminal: Terminal
) -> None:
    before = terminal.mode
    command = f'{sys.executable} -m aetherscale vm console web; echo it is "stop"ped; read line; fg'
    await terminal.start("sh", "-mc", command, env=node.environment)  # a shell has what it runs stop
    await terminal.until("ctrl-] leaves", "sim:~#")
    raw = terminal.mode
    assert raw != before
    terminal.send_child(signal.SIGTSTP)
    await terminal.until("it is stopped")
    assert terminal.mode == before
    terminal.type("\n")
    await terminal.until("it is stopped", "aetherscale vm console web")  # as fg says

    async def is_raw() -> bool:
        return terminal.mode == raw

    await asked_until(is_raw)
    terminal.type("echo a''gain\n")
    await terminal.until("again")
    terminal.type("\x1d")
    assert await terminal.end() == 0
    assert terminal.mode == before
