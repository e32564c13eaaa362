"""What goes wrong on a host with real QEMU: each a sentence that helps, and nothing left over."""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from aetherscale.actors.compute.driver import LogRange
from aetherscale.actors.compute.model.effects import (
    Booted,
    DiskProvisioned,
    Ended,
    EndVm,
    GuestReady,
    VmGone,
)
from aetherscale.actors.compute.qemu import accel, seriallog
from aetherscale.actors.compute.qemu.driver import QEMU
from aetherscale.kernel.failures import EffectFailed
from aetherscale.processes import launch
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    PATIENCE_S,
    TINY,
    VM,
    QemuWorld,
    boot,
    booted,
    ensure,
    node,
    provision,
    read_until,
    say_nothing,
    whole,
)
from tests.support.on_kvm import SKIPPED

__all__ = ["qemu_world", "tiny_image_file"]

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FILE_BYTES = 32_000
"""More than the flood has: whoever follows it sees at most one file take over from another, and loses nothing."""


async def test_where_qemu_is_not_installed_it_is_said_how_to_get_it(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver(qemu="qemu-system-nowhere")
    async with node(driver):
        await ensure(driver, provision(), DiskProvisioned)
        failed = await ensure(driver, boot(), EffectFailed)
    assert failed.reason == "qemu-system-nowhere is not installed"
    assert failed.hint == "apt-get install --no-install-recommends qemu-system-x86"
    assert not failed.retryable
    assert sorted(path.name for path in qemu_world.directory().iterdir()) == ["base.img", "disk.qcow2"]


async def test_a_qemu_that_ends_at_its_start_is_quoted_and_leaves_nothing(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        await ensure(driver, provision(), DiskProvisioned)
        disk = qemu_world.directory() / "disk.qcow2"
        # A qcow2 of version 9, which no QEMU knows.
        disk.write_bytes(disk.read_bytes()[:4] + (9).to_bytes(4, "big") + disk.read_bytes()[8:])
        failed = await ensure(driver, boot(), EffectFailed)
        assert "exit code 1" in failed.reason
        assert "version 9" in failed.log_tail
        assert qemu_world.pids(VM) == []
        assert watcher.seen == []
    left = sorted(path.name for path in qemu_world.directory().iterdir())
    assert left == ["base.img", "disk.qcow2", "qemu.log"]


@pytest.mark.parametrize("name", ["base.img", "disk.qcow2"])
async def test_a_disk_that_is_gone_is_named(qemu_world: QemuWorld, name: str) -> None:
    driver = qemu_world.driver()
    async with node(driver):
        await ensure(driver, provision(), DiskProvisioned)
        (qemu_world.directory() / name).unlink()
        failed = await ensure(driver, boot(), EffectFailed)
        assert f"{name} is missing" in failed.reason
        assert not failed.retryable


async def test_a_state_directory_of_any_depth_does(qemu_world: QemuWorld, tiny_image_file: Path) -> None:
    deep = QemuWorld(qemu_world.state_dir.joinpath(*["deep" * 10] * 4))
    deep.store(tiny_image_file)
    driver = deep.driver()
    async with node(driver):
        await booted(driver)
    next_driver = deep.driver()
    async with node(next_driver):
        assert (await ensure(next_driver, boot(), Booted)).adopted


async def test_a_guest_waits_for_room_on_the_disk_and_goes_on_when_there_is(
    tmp_path: Path, tiny_image_file: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "private", "setpriv", "--pdeathsig", "KILL"),
        *(sys.executable, "-m", "tests.support.on_small_disk", str(tmp_path), str(tiny_image_file)),
        stderr=PIPE,
        cwd=ROOT,
    )
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()


async def test_a_guest_that_kvm_gives_up_on_is_held_and_kvm_is_no_longer_trusted(
    tmp_path: Path, tiny_image_file: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "private", "setpriv", "--pdeathsig", "KILL"),
        *(sys.executable, "-m", "tests.support.on_kvm", str(tmp_path), str(tiny_image_file)),
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,
    )
    said, complained = await process.communicate()
    if process.returncode == SKIPPED:
        pytest.skip(said.decode().strip())
    assert process.returncode == 0, complained.decode()


async def test_a_guest_that_floods_its_serial_line_fills_neither_disk_nor_memory(
    qemu_world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seriallog, "LOG_LIMIT_BYTES", 2 * FILE_BYTES)
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        await booted(driver, TINY)
        await watcher.until(GuestReady)
        typing = await driver.console(VM)
        await read_until(typing.output(), b"# ")
        following = driver.logs(VM, LogRange(1), follow=True)
        said = await anext(following)
        await typing.send(b"seq 1000 6000; echo flood''ed\n")
        # What the console shows is in the log by then: it is from there that it is read.
        said += await read_until(following, b"flooded")
        lines = said.split(b"\r\n")
        first = lines.index(b"1000")
        assert lines[first : first + 5001] == [b"%d" % number for number in range(1000, 6001)]
        logs = [qemu_world.directory() / name for name in ("console.log", "console.log.1")]
        assert max(log.stat().st_size for log in logs if log.exists()) <= FILE_BYTES
        assert b"5999\r\n6000\r\nflooded" in await whole(driver.logs(VM, LogRange(10_000), follow=False))


async def test_the_number_of_cpus_that_is_named_as_the_most_is_one_that_starts(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with node(driver):
        await ensure(driver, provision(), DiskProvisioned)
        async with asyncio.timeout(PATIENCE_S):
            outcome = await driver.perform(boot(cpus=256), say_nothing)
        if isinstance(outcome, EffectFailed):
            # QEMU before 9 emulates no more than 255.
            found = re.fullmatch(r"create it with at most (\d+) CPUs", outcome.hint)
            assert found, outcome
            assert not outcome.retryable
            outcome = await ensure(driver, boot(cpus=int(found[1])), Booted)
        assert isinstance(outcome, Booted)
        await ensure(driver, EndVm("end", VM, 1), Ended)


def test_the_event_loop_may_be_another_one(qemu_world: QemuWorld) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def boot_and_lose() -> None:
        driver = qemu_world.driver()
        async with node(driver) as watcher:
            started = await booted(driver, TINY)
            await watcher.until(GuestReady)
            await read_until((await driver.console(VM)).output(), b"# ")
            qemu_world.kill(started)
            assert (await watcher.until(VmGone)).signal == 9

    uvloop.run(boot_and_lose())


# --- the proof of KVM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "jail", [launch.Jail(None, drops_bounds=False), launch.jail_of(VM)], ids=["as we are", "jailed"]
)
async def test_the_proof_passes_where_instructions_run_at_speed(jail: launch.Jail) -> None:
    async with asyncio.timeout(PATIENCE_S):
        assert await accel.failure_of("tcg", launch.program(QEMU), jail, limit_s=30) == ""


async def test_the_proof_fails_where_they_do_not() -> None:
    async with asyncio.timeout(PATIENCE_S):
        failure = await accel.failure_of("tcg", launch.program(QEMU), launch.Jail(None), limit_s=0.02)
    assert "not done within 0.02 s" in failure


async def test_a_kvm_that_was_insisted_on_and_cannot_be_had_is_named(
    qemu_world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "KVM", Path("/nonexistent/kvm"))
    driver = qemu_world.driver(accelerator="kvm")
    async with node(driver):
        await ensure(driver, provision(), DiskProvisioned)
        failed = await ensure(driver, boot(), EffectFailed)
    assert "/dev/kvm does not exist" in failed.reason
    assert "--accelerator tcg" in failed.hint


async def test_auto_boots_a_guest_on_every_host(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver(accelerator="auto")
    async with node(driver) as watcher:
        await booted(driver, TINY)
        await watcher.until(GuestReady)
