"""A guest that KVM gives up on, run in a mount namespace of its own, where /dev/kvm is open to everybody.

    unshare --mount python -m tests.support.on_kvm MOUNT_POINT TINY_IMAGE

The guest's firmware is one x87 instruction in real mode, which a KVM that emulates real mode does not know: QEMU stops
it with `internal-error`. It ends with status 0 when the driver has done what it should, and with 77 where KVM is not of
that kind, or is not to be had.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import msgspec
from qemu.qmp import ConnectError, QMPClient

from aetherscale.actors.compute.model.effects import (
    Booted,
    DiskProvisioned,
    Ended,
    EndVm,
    GuestPaused,
    Removed,
    RemoveVm,
)
from aetherscale.actors.compute.qemu import accel, identity
from aetherscale.actors.compute.qemu.driver import QEMU
from aetherscale.processes import launch
from tests.support import reaper
from tests.support.compute_worlds import PATIENCE_S, VM, QemuWorld, boot, booted, ensure, node, provision

KVM_DEVICE = os.makedev(10, 232)
RESET_VECTOR, FSIN, FOREVER = 0xFFF0, b"\xd9\xfe", b"\xeb\xfe"
SKIPPED = 77


def skip(why: str) -> NoReturn:
    print(why)
    sys.exit(SKIPPED)


def open_kvm_to_everybody(place: Path) -> None:
    """Here only: the device of the host stays as it is."""
    if not Path("/dev/kvm").exists():
        skip("there is no /dev/kvm")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(place)], check=True)
    device = place / "kvm"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, KVM_DEVICE)
        device.chmod(0o666)
        os.close(os.open(device, os.O_RDWR))
    except OSError as error:
        skip(f"/dev/kvm cannot be opened: {error}")
    subprocess.run(["mount", "--bind", str(device), "/dev/kvm"], check=True)


def emulated(place: Path) -> Path:
    """A QEMU whose guests run that one instruction instead of a firmware, on a CPU that any KVM can set up."""
    firmware = bytearray(0x10000)
    firmware[RESET_VECTOR : RESET_VECTOR + 4] = FSIN + FOREVER
    (place / "fsin.bin").write_bytes(firmware)
    (place / "fsin.bin").chmod(0o644)
    wrapper = place / "qemu-with-fsin"
    wrapper.write_text(
        "#!/bin/sh\n"
        "for word; do\n"
        '    shift; [ "$word" != max ] || word=qemu64; set -- "$@" "$word"\n'
        "done\n"
        f'exec {shutil.which(QEMU)} "$@" -bios {place}/fsin.bin\n'
    )
    wrapper.chmod(0o755)
    return wrapper


async def status_by_hand(qemu: Path, place: Path) -> str:
    """What QEMU says of such a guest when nobody of ours has anything to do with it."""
    path = place / "hand.sock"
    monitor = QMPClient()
    # The connection waits for QEMU, which gets the socket listening, or ends with it.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", str(qemu), "-nodefaults", "-display", "none", "-serial", "stdio"),
            *("-accel", "kvm", "-cpu", "max", "-m", "16", "-S", "-mon", "qmp,mode=control"),
            *("-chardev", f"socket,id=qmp,fd={listening.fileno()},server=on,wait=off"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
        )
    try:
        async with asyncio.timeout(PATIENCE_S):
            try:
                await monitor.connect(str(path))
            except ConnectError as error:
                return f"QEMU ended: {error}"
            await monitor.execute("cont")
            try:
                async with asyncio.timeout(5):
                    while (await monitor.events.get())["event"] != "STOP":
                        pass
            except TimeoutError:
                return "running"
            answer = await monitor.execute("query-status")
            await monitor.disconnect()
        assert isinstance(answer, dict)
        return str(answer["status"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_paused(world: QemuWorld, qemu: Path, accelerator: str) -> None:
    """A VM that is started is paused, says why and what helps, and can be ended and removed; nothing of it is left."""
    driver = world.driver(qemu=str(qemu), accelerator=accelerator)
    async with node(driver) as watcher:
        await booted(driver)
        paused = await watcher.until(GuestPaused)
        assert paused.reason == "internal-error", paused
        assert "--accelerator tcg" in paused.detail, paused
        await ensure(driver, EndVm("end", VM, 1), Ended)
        assert world.pids(VM) == []
        await ensure(driver, RemoveVm("remove", VM, 1), Removed)
        assert not world.directory().exists()


async def main(place: Path, public: Path, tiny_image: Path) -> None:
    """`public` is a directory in which the uids of VMs may look for programs."""
    open_kvm_to_everybody(place)
    image = place / "tiny.img"
    shutil.copyfile(tiny_image, image)
    qemu = emulated(public)
    status = await status_by_hand(qemu, place)
    if status != "internal-error":
        skip(f"this KVM does not give up on the guest: {status}")
    told = QemuWorld(place / "told")
    told.store(image)
    await until_paused(told, qemu, "kvm")

    trusting = QemuWorld(place / "trusting")
    trusting.store(image)
    verdict = accel.Verdict(identity.boot_id(), accel.fingerprint(launch.program(str(qemu))), works=True, reason="")
    cache = trusting.state_dir / "accelerator.json"
    cache.write_bytes(msgspec.json.encode(verdict))
    await until_paused(trusting, qemu, "auto")
    assert not msgspec.json.decode(cache.read_bytes(), type=accel.Verdict).works
    driver = trusting.driver(qemu=str(qemu), accelerator="auto")
    async with node(driver):
        await ensure(driver, provision(), DiskProvisioned)
        again = await ensure(driver, boot(run=2), Booted)
        assert b"\0-accel\0tcg" in Path(f"/proc/{again.pid}/cmdline").read_bytes()
        await ensure(driver, EndVm("end", VM, 2), Ended)
    assert trusting.pids(VM) == []


if __name__ == "__main__":
    watchman = reaper.start(Path(sys.argv[1]))
    try:
        with tempfile.TemporaryDirectory() as public:
            Path(public).chmod(0o755)
            asyncio.run(main(Path(sys.argv[1]), Path(public), Path(sys.argv[2])))
    finally:
        watchman.communicate()
