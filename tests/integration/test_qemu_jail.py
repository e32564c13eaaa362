"""What a live QEMU may do: looked up in /proc, where the kernel says it."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from aetherscale.actors.compute.model.effects import Ended, EndVm
from aetherscale.processes import users
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import OTHER_VM, VM, QemuWorld, booted, ensure, node

__all__ = ["qemu_world", "tiny_image_file"]

pytestmark = pytest.mark.integration


def status(pid: int) -> dict[str, str]:
    """proc(5), /proc/pid/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def limit(pid: int, name: str) -> str:
    """The hard limit of that name (proc(5), /proc/pid/limits)."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(re.split(r"\s{2,}", line)[2] for line in lines if line.startswith(name))


def descriptors(pid: int) -> list[str]:
    """What the process has open."""
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        # The one that was used for listing them is gone by now.
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return found


async def test_a_qemu_has_no_privilege_and_cannot_get_one(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with node(driver):
        started = await booted(driver)
        now = status(started.pid)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(now[kind], 16) == 0, kind
        assert now["NoNewPrivs"] == "1"
        assert now["Seccomp"] == "2"
        assert now["Umask"] == "0077"
        # SIGXFSZ: a write beyond the limit below fails, and does not end QEMU.
        assert int(now["SigIgn"], 16) & 1 << (signal.SIGXFSZ - 1)
        assert os.getsid(started.pid) == started.pid
        assert limit(started.pid, "Max core file size") == "0"
        # The largest file that it may write is its own disk, here of 64 MiB.
        assert int(limit(started.pid, "Max file size")) < 256 * 1024 * 1024
        await ensure(driver, EndVm("end", VM, 1), Ended)


@pytest.mark.skipif(users.way() != "switch", reason="only root gives each VM a uid of its own")
async def test_every_vm_has_a_uid_of_its_own_and_owns_nothing(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with node(driver):
        one, other = await booted(driver), await booted(driver, vm_id=OTHER_VM)
        uids = []
        for started in (one, other):
            now = status(started.pid)
            uids.append(int(now["Uid"].split()[0]))
            assert set(now["Uid"].split()) == set(now["Gid"].split()) == {str(uids[-1])}
            assert now["Groups"] == ""
            assert int(now["CapBnd"], 16) == 0
        assert len({*uids, os.getuid()}) == 3
        for path in (qemu_world.state_dir / "vms").rglob("*"):
            assert path.stat().st_uid == os.getuid(), path
            assert path.is_dir() or path.is_socket() or path.name == "base.img" or path.stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in (qemu_world.state_dir / "vms").iterdir())


async def test_a_qemu_inherits_nothing_but_what_is_meant(
    qemu_world: QemuWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AETHERSCALE_SECRET", "hunter2")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    leak = os.open(secret, os.O_RDONLY)
    os.set_inheritable(leak, True)
    driver = qemu_world.driver()
    async with node(driver):
        started = await booted(driver)
        directory = qemu_world.directory()
        own = {str(directory / name) for name in ("base.img", "disk.qcow2", "console.pipe", "qemu.log")}
        for target in descriptors(started.pid):
            assert target in own or target == "/dev/null" or re.match(r"socket:|pipe:|anon_inode:", target), target
        environment = Path(f"/proc/{started.pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
        assert {entry.partition(b"=")[0] for entry in environment} == {b"PATH", b"LC_ALL"}
        assert b"hunter2" not in Path(f"/proc/{started.pid}/cmdline").read_bytes()
    os.close(leak)


async def test_ps_tells_which_vm_it_is(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with node(driver):
        started = await booted(driver)
        words = Path(f"/proc/{started.pid}/cmdline").read_bytes().split(b"\0")
        assert words[words.index(b"-name") + 1] == b"aether-" + VM.encode()


async def test_a_node_that_stops_closes_all_that_it_had_open_for_its_guests(qemu_world: QemuWorld) -> None:
    before = len(descriptors(os.getpid()))
    for run in range(3):
        driver = qemu_world.driver()
        async with node(driver):
            await booted(driver, vm_id=f"{run}123456789abcdef")
    assert len(descriptors(os.getpid())) <= before
