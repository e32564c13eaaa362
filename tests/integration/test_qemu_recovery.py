"""What a node that was killed leaves behind, and what the next one makes of it. Real QEMU, real SIGKILLs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale.actors.compute.driver import Found, LogRange
from aetherscale.actors.compute.model.effects import (
    Booted,
    DiskProvisioned,
    Ended,
    EndVm,
    GuestEnded,
    GuestReady,
    Removed,
    RemoveVm,
    ShutDownVm,
    VmGone,
)
from aetherscale.actors.compute.qemu import argv, machine, session, starter
from aetherscale.actors.compute.qemu import driver as driver_module
from aetherscale.actors.compute.qemu.console import SerialLine
from aetherscale.actors.compute.qemu.identity import boot_id, start_ticks
from aetherscale.actors.compute.qemu.layout import RunRecord, VmDirectory
from aetherscale.actors.compute.qemu.session import Monitor
from aetherscale.kernel.failures import EffectFailed
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    BARE,
    PATIENCE_S,
    TINY,
    VM,
    QemuWorld,
    boot,
    booted,
    ensure,
    identity,
    node,
    provision,
    read_until,
    say_nothing,
    type_in,
    whole,
)
from tests.support.first_node import MOMENTS

__all__ = ["qemu_world", "tiny_image_file"]

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
END = EndVm("end", VM, 1)


async def test_a_guest_that_an_older_version_started_gets_its_line_from_the_next_node(
    qemu_world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1 had a socket in QEMU, and QEMU wrote the log."""
    with monkeypatch.context() as older:
        commanded = argv.command_line

        def as_before(*arguments: Any) -> list[str]:
            socket = "socket,id=serial,host=127.0.0.1,port=0,server=on,wait=off,logfile=/dev/null"
            return [socket if word == "null,id=serial" else word for word in commanded(*arguments)]

        async def not_yet(line: SerialLine, monitor: Monitor) -> None:
            """There was no such thing."""

        older.setattr(argv, "command_line", as_before)
        older.setattr(SerialLine, "connect", not_yet)
        driver = qemu_world.driver()
        async with node(driver) as watcher:
            started = await booted(driver, TINY)
            await watcher.until(GuestReady)
    (qemu_world.directory() / "console.log").write_bytes(b"what it said before\n")
    driver = qemu_world.driver()
    async with node(driver):
        assert await driver.adopt(identity(started))
        console = await driver.console(VM)
        await console.send(b"\necho new-''line\n")
        said = await read_until(console.output(), b"new-line")
        assert said.startswith(b"what it said before\n")
        assert b"new-line" in await whole(driver.logs(VM, LogRange(1 << 20), follow=False))


async def test_a_boot_that_is_cancelled_while_its_line_is_connected_hangs_up_for_the_next_one(
    qemu_world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU has one client of QMP at a time: one that stayed would keep the next one out."""
    reached = asyncio.Event()

    async def never(line: SerialLine, monitor: Monitor) -> None:
        reached.set()
        await asyncio.Event().wait()

    driver = qemu_world.driver()
    async with node(driver):
        await ensure(driver, provision(), DiskProvisioned)
        with monkeypatch.context() as hung:
            hung.setattr(SerialLine, "connect", never)
            booting = asyncio.ensure_future(driver.perform(boot(), say_nothing))
            await reached.wait()
            booting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await booting
        await ensure(driver, boot(), Booted)
        assert qemu_world.processes(VM) == 1


async def first_node(world: QemuWorld, image: str, *moment: str) -> Process:
    """A node in a process of its own, which cannot outlive this one."""
    return await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.support.first_node"),
        *(str(world.state_dir), image, *moment),
        stdout=PIPE,
        cwd=ROOT,
    )


async def killed_after_boot(world: QemuWorld, image: str) -> Booted:
    """A VM that was booted by a node which has been killed since."""
    first = await first_node(world, image)
    assert first.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        line = await first.stdout.readline()
        first.kill()
        assert await first.wait() == -signal.SIGKILL
    return msgspec.json.decode(line, type=Booted)


async def test_a_guest_outlives_its_node_and_the_next_one_takes_it_over(qemu_world: QemuWorld) -> None:
    # Killed while the guest boots: it has not said that it is ready.
    started = await killed_after_boot(qemu_world, TINY)
    assert start_ticks(started.pid) == started.start_ticks
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        assert await driver.adopt(identity(started))
        assert await watcher.until(GuestReady) == GuestReady(VM, 1, "channel")
        await type_in(driver, "echo still-''here")
        await read_until((await driver.console(VM)).output(), b"still-here")
        asked = asyncio.get_running_loop().create_task(driver.perform(ShutDownVm("s", VM, 1, PATIENCE_S), say_nothing))
        await watcher.until(GuestEnded)
        ended = await ensure(driver, END, Ended)
        assert (ended.exit_code, ended.signal) == (None, None)
        assert isinstance(await asked, Ended)


async def test_a_death_of_somebody_elses_child_is_seen_and_its_cause_called_unknown(qemu_world: QemuWorld) -> None:
    started = await killed_after_boot(qemu_world, BARE)
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        assert await driver.adopt(identity(started))
        os.kill(started.pid, signal.SIGKILL)
        gone = await watcher.until(VmGone)
        assert (gone.exit_code, gone.signal) == (None, None)
        assert "was not this node's child" in gone.detail


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_node_that_is_killed_in_a_boot_leaves_what_the_next_one_makes_into_one_process(
    qemu_world: QemuWorld, moment: str
) -> None:
    first = await first_node(qemu_world, BARE, moment)
    async with asyncio.timeout(PATIENCE_S):
        assert await first.wait() == -signal.SIGKILL
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        left = qemu_world.pids(VM)
        again = await ensure(driver, boot(), Booted)
        assert again.adopted == (moment != "before exec")
        assert left == ([again.pid] if again.adopted else [])
        assert qemu_world.pids(VM) == [again.pid]
        assert watcher.seen == []
    assert await qemu_world.status(VM) == "running"


@pytest.mark.parametrize("moment", MOMENTS[1:])
async def test_a_removal_finds_the_process_wherever_its_node_was_killed(qemu_world: QemuWorld, moment: str) -> None:
    first = await first_node(qemu_world, BARE, moment)
    async with asyncio.timeout(PATIENCE_S):
        assert await first.wait() == -signal.SIGKILL
    assert len(qemu_world.pids(VM)) == 1
    driver = qemu_world.driver()
    async with node(driver):
        await ensure(driver, RemoveVm("r", VM, 1), Removed)
        assert qemu_world.pids(VM) == []
        assert await driver.inventory() == []


@pytest.mark.parametrize("elsewhere", [True, False], ids=["anywhere", "in the VM's directory"])
async def test_a_pid_that_belongs_to_somebody_else_by_now_is_neither_adopted_nor_killed(
    qemu_world: QemuWorld, elsewhere: bool
) -> None:
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        await ensure(driver, provision(), DiskProvisioned)
        directory = VmDirectory(qemu_world.state_dir / "vms", VM)
        place = "/" if elsewhere else directory.path
        stranger = await asyncio.create_subprocess_exec("setpriv", "--pdeathsig", "KILL", "sleep", "600", cwd=place)
        ticks = start_ticks(stranger.pid)
        assert ticks is not None
        directory.write_record(RunRecord(1, boot_id(), "tcg", "channel", stranger.pid, ticks))
        forged = Booted("b", VM, 1, stranger.pid, ticks, boot_id(), "tcg")
        assert not await driver.adopt(identity(forged))
        started = await ensure(driver, boot(), Booted)
        assert not started.adopted
        assert started.pid != stranger.pid
        await ensure(driver, END, Ended)
        directory.write_record(RunRecord(1, boot_id(), "tcg", "channel", stranger.pid, ticks))
        await ensure(driver, RemoveVm("r", VM, 1), Removed)
        assert start_ticks(stranger.pid) == ticks
        stranger.kill()
        await stranger.wait()
        assert watcher.seen == []


@pytest.mark.parametrize("content", [b"", b"rubbish", b'{"run": 1}'])
async def test_a_record_that_was_damaged_hides_no_process(qemu_world: QemuWorld, content: bytes) -> None:
    started = await killed_after_boot(qemu_world, BARE)
    (qemu_world.directory() / "run.json").write_bytes(content)
    driver = qemu_world.driver()
    async with node(driver):
        # Which run it was is not known any more, so it is none that anybody asked for.
        again = await ensure(driver, boot(), Booted)
        assert not again.adopted
        assert qemu_world.pids(VM) == [again.pid]
        assert again.pid != started.pid


async def test_a_process_whose_directory_was_deleted_is_found_and_ended(qemu_world: QemuWorld) -> None:
    await killed_after_boot(qemu_world, BARE)
    VmDirectory(qemu_world.state_dir / "vms", VM).remove()
    driver = qemu_world.driver()
    async with node(driver):
        assert await driver.inventory() == [Found(VM, has_process=True, has_directory=False)]
        await ensure(driver, RemoveVm("r", VM, 1), Removed)
        assert await driver.inventory() == []
    assert qemu_world.pids(VM) == []


async def test_a_process_of_an_earlier_run_is_ended_before_the_next_boot(qemu_world: QemuWorld) -> None:
    started = await killed_after_boot(qemu_world, BARE)
    driver = qemu_world.driver()
    async with node(driver):
        again = await ensure(driver, boot(run=2), Booted)
        assert not again.adopted
        assert qemu_world.pids(VM) == [again.pid]
        assert again.pid != started.pid


# --- QEMU that hangs -------------------------------------------------------------------------------------------------


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CALL_LIMIT_S", 0.3)
    monkeypatch.setattr(machine, "_RETRY_MIN_S", 0.1)
    monkeypatch.setattr(machine, "_QUIT_PATIENCE_S", 0.3)


@pytest.mark.usefixtures("short_limits")
async def test_a_qemu_that_hangs_is_unresponsive_and_not_ended_and_can_be_killed(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        started = await booted(driver)
        os.kill(started.pid, signal.SIGSTOP)
        failed = await ensure(driver, ShutDownVm("s", VM, 1, 5), EffectFailed)
        assert "timed out" in failed.reason
        assert failed.hint == "stop the VM with the option kill, which ends QEMU"
        assert failed.retryable
        ended = await ensure(driver, END, Ended)
        assert ended.signal == signal.SIGKILL
        assert watcher.seen == []


@pytest.mark.usefixtures("short_limits")
async def test_a_process_that_outlives_its_kill_is_told_and_not_called_stopped(
    qemu_world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = qemu_world.driver()
    async with node(driver):
        started = await booted(driver)
        os.kill(started.pid, signal.SIGSTOP)
        # As one does that waits in the kernel for a disk that does not answer.
        monkeypatch.setattr(machine.Machine, "_kill", lambda stuck: None)
        monkeypatch.setattr(driver_module, "_KILL_LIMIT_S", 0.1)
        failed = await ensure(driver, END, EffectFailed)
        assert "does not end 0.1 s after SIGKILL" in failed.reason
        assert driver.watches(VM, 1)
        monkeypatch.undo()
        assert (await ensure(driver, END, Ended)).signal == signal.SIGKILL


async def test_somebody_else_who_holds_a_vms_sockets_is_named(
    qemu_world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "_FIND_LIMIT_S", 0.05)
    driver = qemu_world.driver()
    async with node(driver):
        await ensure(driver, provision(BARE), DiskProvisioned)
        with VmDirectory(qemu_world.state_dir / "vms", VM).listen("qmp.sock"):
            failed = await ensure(driver, END, EffectFailed)
        assert "not this VM's QEMU" in failed.reason
        assert "fuser" in failed.hint
        assert await ensure(driver, END, Ended) == Ended(END.key)


@pytest.mark.usefixtures("short_limits")
async def test_a_qemu_that_hangs_is_adopted_and_heard_when_it_goes_on(qemu_world: QemuWorld) -> None:
    started = await killed_after_boot(qemu_world, TINY)
    os.kill(started.pid, signal.SIGSTOP)
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        assert await driver.adopt(identity(started))
        assert watcher.seen == []
        os.kill(started.pid, signal.SIGCONT)
        await watcher.until(GuestReady)


async def test_a_connection_to_qmp_that_breaks_is_made_again_and_nothing_is_missed(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        await booted(driver, TINY)
        await watcher.until(GuestReady)
        monitor = driver._machines[VM]._monitor
        assert monitor is not None
        monitor._shut_down()
        await type_in(driver, "poweroff")
        assert (await watcher.until(GuestEnded)).reason == "shutdown"
        assert watcher.of(VmGone) == []
