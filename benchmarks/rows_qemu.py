"""Real QEMU under TCG, on an image with nothing on it: what the driver adds to a process that is started by hand."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import nats

from aetherscale.actors.compute.effects import Booted, BootVm, Ended, EndVm, ProvisionDisk
from aetherscale.actors.compute.qemu.driver import QemuDriver
from aetherscale.actors.images.header import write_overlay
from aetherscale.bus.endpoint import read_endpoint
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.images import bare_image
from benchmarks.logs import TENANT
from benchmarks.served import node, wire

BARE: Final = "2" * 16
MEMORY_MIB: Final = 64
TURNS: Final = 3
RUNNING: Final = b'"running": true'


@asynccontextmanager
async def boots(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """Overlay and boot through the driver, then the end; beside the same by hand, on the raw image."""
    image = bare_image(context.directory)
    state = context.directory / "state"
    state.mkdir(mode=0o700)
    driver = QemuDriver(
        state, image_path=lambda image_id, image_format: image, write_overlay=write_overlay, accelerator="tcg"
    )
    await driver.start(lambda observation: None)
    numbers = itertools.count(1)
    try:
        yield {
            OURS: lambda: driver_turn(driver, numbers),
            "by hand": lambda: asyncio.to_thread(hand_turn, context.directory, image),
        }
    finally:
        await driver.close()


async def driver_turn(driver: QemuDriver, numbers: Any) -> Samples:
    """Milliseconds from nothing to running, and from the wish to end it to the end."""
    up, down = [], []
    for _ in range(TURNS):
        vm_id = f"{next(numbers):016d}"
        begun = time.perf_counter()
        await driver.perform(ProvisionDisk("provision", vm_id, BARE, "raw", 64), lambda word: None)
        booted = await driver.perform(BootVm("boot", vm_id, 1, 1, MEMORY_MIB, "none", "raw"), lambda word: None)
        assert isinstance(booted, Booted), booted
        up.append((time.perf_counter() - begun) * 1000)
        begun = time.perf_counter()
        ended = await driver.perform(EndVm("end", vm_id, 1), lambda word: None)
        assert isinstance(ended, Ended), ended
        down.append((time.perf_counter() - begun) * 1000)
    return {"create ms": up, "kill ms": down}


def hand_turn(directory: Path, image: Path) -> Samples:
    """The same with no driver: QEMU connects to a socket that already listens, and is asked whether it runs."""
    up, down = [], []
    disk = f'{{"driver": "raw", "node-name": "d", "file": {{"driver": "file", "filename": "{image}"}}}}'
    for _ in range(TURNS):
        path = directory / "hand.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            begun = time.perf_counter()
            pid = os.posix_spawnp(
                "setpriv",
                [
                    *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-M", "q35", "-accel", "tcg"),
                    *("-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-qmp", f"unix:{path}"),
                    *("-blockdev", disk, "-device", "virtio-blk-pci,drive=d"),
                ],
                os.environ,
            )
            monitor, _ = listener.accept()
            with monitor, monitor.makefile("rwb") as lines:
                lines.readline()
                lines.write(b'{"execute": "qmp_capabilities"}{"execute": "query-status"}')
                lines.flush()
                while RUNNING not in (line := lines.readline()):
                    assert line
                up.append((time.perf_counter() - begun) * 1000)
                begun = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                down.append((time.perf_counter() - begun) * 1000)
    return {"create ms": up, "kill ms": down}


@asynccontextmanager
async def deaths(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """SIGKILL for the QEMU of a VM of a real node, until a subscriber has the event."""
    state = context.directory / "state"
    image = bare_image(context.directory)
    async with node(state, simulated=False):
        plain = wire(state)
        await asyncio.to_thread(
            plain.ask,
            f"aether.v1.{TENANT}.cmd.images.import-image",
            msgspec.json.encode({"source": str(image), "name": "bare", "ready": "none"}),
        )
        endpoint = read_endpoint(state)
        client = await nats.connect(endpoint.url, user=endpoint.user or None, password=endpoint.password or None)
        subscription = await client.subscribe("aether.v1.*.evt.>")
        await client.flush()

        async def turn() -> Samples:
            took = []
            for _ in range(TURNS):
                wish = {"image": "bare", "memory-mib": MEMORY_MIB, "restart": "never"}
                said = await asyncio.to_thread(
                    plain.ask, f"aether.v1.{TENANT}.cmd.compute.create-vm", msgspec.json.encode(wish)
                )
                if b'"type":"result"' not in said:
                    raise RuntimeError(said.decode(errors="replace"))
                vm_id = said.rpartition(b'"vm-id":"')[2][:16].decode()
                pid = pid_of(state / "vms" / vm_id)
                begun = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                while b"crash" not in (await subscription.next_msg(20)).data:
                    pass
                took.append((time.perf_counter() - begun) * 1000)
                body = msgspec.json.encode({"vm-id": vm_id, "kill": True})
                await asyncio.to_thread(plain.ask, f"aether.v1.{TENANT}.cmd.compute.delete-vm", body)
            return {"ms": took}

        try:
            yield {OURS: turn}
        finally:
            plain.close()
            await client.close()


def pid_of(directory: Path) -> int:
    """The process whose working directory it is."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if os.readlink(f"/proc/{entry.name}/cwd") == str(directory):
                    return int(entry.name)
            except OSError:
                continue
    raise RuntimeError(f"no process works in {directory}")


QEMU_ROWS: Final = (
    Row(
        "create",
        "a VM from nothing to running (TCG), and its end",
        boots,
        (Target("create ms", "<=", 1.4, "by hand"), Target("kill ms", "<=", 10)),
        note="Ours makes the overlay too, drops privileges, and reads back what names the process.",
    ),
    Row("death", "SIGKILL for QEMU until a NATS subscriber has the event", deaths, (Target("ms", "<=", 8),), rounds=5),
)
