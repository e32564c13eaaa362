"""What needs a real guest: the console on a terminal, and waits that take time."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator

import pytest

from tests.support.nats_server import taken_port
from tests.support.node import PATIENCE_S, ROOT, RunningNode
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

DETACH = "\x1d"


@pytest.fixture
async def terminal() -> AsyncIterator[Terminal]:
    made = Terminal()
    yield made
    await made.close()


async def good(node: RunningNode, *words: str) -> str:
    """What a command that has to succeed writes to stdout."""
    status, out, err = await node.cli(*words)
    assert status == 0, err
    return out


def aetherscale(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "aetherscale", *words)


async def test_a_wait_that_is_cut_short_or_runs_out_leaves_the_vm_booting(
    node: RunningNode, terminal: Terminal
) -> None:
    await terminal.start(
        *aetherscale("vm", "create", "web", "--image", "tiny", "--memory", "192M"), env=node.environment
    )
    await terminal.until("web: running  1 s")
    terminal.type("\x03")
    assert await terminal.end() == 5
    assert "interrupted; vm web was at: running. The work continues; this is not a failure" in terminal.said
    assert "hint: aetherscale vm wait web" in terminal.shown

    status, _, err = await node.cli("vm", "start", "web", "--timeout", "0.3s")
    assert (status, "the wait of 0.3 s ran out" in err) == (5, True)
    assert "web" in await good(node, "vm", "wait", "web")
    assert (await node.vm("web"))["phase"] == "ready"

    await console_on_a_terminal(node, terminal)
    await console_without_a_terminal(node)
    await console_into_a_program_that_has_read_enough(node)
    await console_of_a_vm_that_ends(node, terminal)


async def test_a_node_that_dies_during_a_wait_goes_on_with_what_it_has_taken(
    node: RunningNode, terminal: Terminal
) -> None:
    await terminal.start(*aetherscale("vm", "create", "web", "--image", "tiny"), env=node.environment)
    await terminal.until("web: running  1 s")
    await node.kill()
    assert await terminal.end() == 5
    assert "no node answers" in terminal.said
    assert "vm web was at: running. The work continues when the node is back; this is not a failure" in terminal.said
    assert (await node.cli("vm", "wait", "web"))[0] == 4
    await node.start()
    assert "web" in await good(node, "vm", "wait", "web")


async def console_on_a_terminal(node: RunningNode, terminal: Terminal) -> None:
    """Keys go to the guest, the detach key leaves, and the terminal is as it was."""
    before = terminal.mode
    await terminal.start(*aetherscale("vm", "console", "web"), env=node.environment)
    await terminal.until("attached to web on host1; ctrl-] leaves", "[web; ctrl-] leaves]")
    terminal.type("\r")
    await terminal.until("web:~#")
    assert terminal.mode != before, "it is raw"
    # A shell of its own says hello: by then it is in the foreground, and Ctrl-C reaches it and what it becomes.
    terminal.type("sh -c \"echo he''llo; exec sleep 1000\"\r")
    await terminal.until("hello")
    terminal.type("\x03echo inter''rupted\r")
    await terminal.until("interrupted")
    terminal.type(f"echo not-sent-{DETACH}")
    assert await terminal.end() == 0
    assert "detached; web keeps running" in terminal.shown
    assert terminal.mode == before
    assert (await node.vm("web"))["phase"] == "ready"

    await terminal.start(*aetherscale("vm", "console", "web", "--detach-key", "ctrl-a"), env=node.environment)
    await terminal.until("ctrl-a leaves")
    terminal.type("\x01")
    assert await terminal.end() == 0
    assert terminal.mode == before


async def console_without_a_terminal(node: RunningNode) -> None:
    """What is piped in is typed, and what the guest says comes out."""
    process = await asyncio.create_subprocess_exec(
        *aetherscale("vm", "console", "web"), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=node.environment, cwd=ROOT
    )
    out, err = await asyncio.wait_for(process.communicate(b"\x03\necho pi''ped\n"), PATIENCE_S)
    assert (process.returncode, b"detached; web keeps running" in err) == (0, True)
    assert b"piped" in out


async def console_into_a_program_that_has_read_enough(node: RunningNode) -> None:
    """The console ends with who reads it, though the guest says nothing more."""
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *aetherscale("vm", "console", "web"), stdin=DEVNULL, stdout=writing, stderr=PIPE, env=node.environment, cwd=ROOT
    )
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 1)
    os.close(reading)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert (process.returncode, b"error" in err) == (0, False)


async def console_of_a_vm_that_ends(node: RunningNode, terminal: Terminal) -> None:
    """The console ends with the VM."""
    before = terminal.mode
    await terminal.start(*aetherscale("vm", "console", "web"), env=node.environment)
    await terminal.until("attached to web")
    await good(node, "vm", "stop", "web", "--kill")
    assert await terminal.end() == 0
    assert "web has ended" in terminal.shown
    assert terminal.mode == before


async def test_a_guest_that_does_not_boot_is_told_with_its_phase_and_the_end_of_its_log(node: RunningNode) -> None:
    with taken_port() as port:
        status, _, err = await node.cli("vm", "create", "web", "--image", "tiny", "--publish", f"{port}:80")
    assert status == 1
    failed = f"booting: the port {port}/tcp of the host is taken by another program"
    assert failed in err
    assert await good(node, "vm", "list", "--json") == "[]\n"
    told = await good(node, "why", "vm", "web")
    assert f"it never ran: {failed}" in told
