"""What every compute driver brings to a program in the guest that has its input and its outputs as streams."""

from __future__ import annotations

import asyncio

import pytest

from aetherscale.actors.compute.driver import ComputeDriver, PipedProgram
from aetherscale.actors.compute.model.effects import DiskProvisioned, Ended, GuestReady
from aetherscale.kernel.errors import Reason, Refused
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    BARE,
    PATIENCE_S,
    TINY,
    VM,
    QemuWorld,
    Watcher,
    agent_answers,
    booted,
    ensure,
    node,
    provision,
)
from tests.support.driver_fixtures import END, driver, watcher, world

__all__ = ["driver", "qemu_world", "tiny_image_file", "watcher", "world"]


async def guest(driver: ComputeDriver, watcher: Watcher) -> None:
    """A VM whose agent answers."""
    await booted(driver, TINY, ready="agent")
    await watcher.until(GuestReady)
    await agent_answers(driver)


async def said(program: PipedProgram) -> tuple[bytes, bytes]:
    """All of its two outputs, once it has ended."""
    out, err = bytearray(), bytearray()
    async with asyncio.timeout(PATIENCE_S):
        async for piece in program.output():
            (err if piece.is_error else out).extend(piece.data)
    await program.close()
    return bytes(out), bytes(err)


async def test_a_program_has_its_two_outputs_apart_and_its_status_is_told(
    driver: ComputeDriver, watcher: Watcher
) -> None:
    await guest(driver, watcher)
    for _ in range(3):
        program = await driver.program(VM, ["sh", "-c", "echo one; echo two >&2; exit 3"], has_input=False)
        assert program.pid > 0
        assert await said(program) == (b"one\n", b"two\n")
        assert program.exit_code == 3
    quiet = await driver.program(VM, ["true"], has_input=False)
    assert await said(quiet) == (b"", b"")
    assert quiet.exit_code == 0


async def test_input_of_any_bytes_is_streamed_and_its_end_is_told(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    every = bytes(range(256)) * 3000
    program = await driver.program(VM, ["cat"], has_input=True)

    async def give() -> None:
        for at in range(0, len(every), 50_000):
            await program.send(every[at : at + 50_000])
        await program.end_input()

    giving = asyncio.ensure_future(give())
    assert await said(program) == (every, b"")
    await giving
    assert program.exit_code == 0
    with pytest.raises(Refused) as refused:
        await program.send(b"x")
    assert refused.value.reason == Reason.CONFLICT


@pytest.mark.parametrize("has_input", [True, False])
async def test_an_empty_input_ends_at_once(driver: ComputeDriver, watcher: Watcher, has_input: bool) -> None:
    await guest(driver, watcher)
    program = await driver.program(VM, ["cat"], has_input=has_input)
    if has_input:
        await program.end_input()
    assert await said(program) == (b"", b"")
    assert program.exit_code == 0


async def test_a_signal_reaches_the_program(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    for name, status in (("TERM", 143), ("KILL", 137)):
        program = await driver.program(VM, ["sleep", "1000"], has_input=False)
        await program.signal(name)  # type: ignore[arg-type]
        assert await said(program) == (b"", b"")
        assert program.exit_code == status


@pytest.mark.integration
async def test_a_program_that_makes_its_streams_non_blocking_is_told_as_any_other(qemu_world: QemuWorld) -> None:
    """As ssh, sshd and many interpreters do. `dd` has a flag for it, and hands it on with its stdin and stdout."""
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        await guest(driver, watcher)
        script = "dd iflag=nonblock oflag=nonblock bs=1 count=0 2> /dev/null; echo done; exit 4"
        program = await driver.program(VM, ["sh", "-c", script], has_input=True)
        out, _ = await said(program)
        assert (out, program.exit_code) == (b"done\n", 4)


async def test_two_programs_at_once_do_not_mix(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    one, two = await asyncio.gather(*(driver.program(VM, ["cat"], has_input=True) for _ in range(2)))
    assert one.pid != two.pid
    await one.send(b"from-one\n")
    await two.send(b"from-two\n")
    await two.end_input()
    assert await said(two) == (b"from-two\n", b"")
    await one.end_input()
    assert await said(one) == (b"from-one\n", b"")


async def test_a_caller_who_goes_away_ends_the_output(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    program = await driver.program(VM, ["sleep", "1000"], has_input=False)
    await program.close()
    await said(program)
    assert program.exit_code is None


async def test_the_end_of_the_vm_ends_the_output(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    program = await driver.program(VM, ["sleep", "1000"], has_input=True)
    await ensure(driver, END, Ended)
    await said(program)
    assert program.exit_code is None


async def test_a_program_that_is_not_there_is_refused(driver: ComputeDriver, watcher: Watcher) -> None:
    await guest(driver, watcher)
    with pytest.raises(Refused, match="no such program") as refused:
        await driver.program(VM, ["/no/such/program"], has_input=True)
    assert refused.value.reason == Reason.BAD_REQUEST


async def test_without_an_agent_or_a_process_a_program_is_refused(driver: ComputeDriver, watcher: Watcher) -> None:
    await ensure(driver, provision(), DiskProvisioned)
    with pytest.raises(Refused) as at_rest:
        await driver.program(VM, ["true"], has_input=False)
    await booted(driver, BARE)
    with pytest.raises(Refused) as silent:
        await driver.program(VM, ["true"], has_input=False)
    assert (at_rest.value.reason, silent.value.reason) == (Reason.CONFLICT, Reason.UNAVAILABLE)
