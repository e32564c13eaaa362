"""Real QEMU under TCG, on an image with nothing on it: what the driver adds to a process that is started by hand."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import nats

from aetherscale.actors.compute.model.effects import Booted, BootVm, Ended, EndVm, ProvisionDisk
from aetherscale.actors.compute.qemu.driver import QemuDriver
from aetherscale.actors.images.files.header import write_overlay
from aetherscale.actors.network.ports import VmPorts
from aetherscale.bus.endpoint import read_endpoint
from aetherscale.identifiers import boot_id
from benchmarks import by_hand, libvirt
from benchmarks.by_hand import MEMORY_MIB
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.images import bare_image
from benchmarks.logs import TENANT
from benchmarks.networks import Ports
from benchmarks.served import node, wire
from benchmarks.wire import Wire

BARE: Final = "2" * 16
TURNS: Final = 3
ALONE: Final = 6
CLIENTS: Final = 8
EACH: Final = 2
COMMANDS: Final = f"aether.v1.{TENANT}.cmd"


@asynccontextmanager
async def boots(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """Overlay and boot through the driver, then the end; beside the same by hand, on the raw image."""
    image = bare_image(context.directory)
    numbers = itertools.count(1)
    async with driven(context.directory / "state", image) as driver, libvirt.beside("create", times=TURNS) as peers:
        yield {
            OURS: lambda: driver_turn(driver, numbers),
            "by hand": lambda: asyncio.to_thread(by_hand.hand_turn, context.directory, image, TURNS),
            "by qemu.qmp": lambda: by_hand.qmp_turn(context.directory, image, TURNS),
            **peers,
        }


@asynccontextmanager
async def driven(state: Path, image: Path, ports: VmPorts | None = None) -> AsyncIterator[QemuDriver]:
    """The driver of VMs, each of which has this image."""
    state.mkdir(mode=0o700)
    driver = QemuDriver(
        state,
        boot_id(),
        image_path=lambda image_id, image_format, sha256: image,
        write_overlay=write_overlay,
        accelerator="tcg",
        allow_unisolated=True,
        ports=ports,
    )
    await driver.start(lambda observation: asyncio.get_running_loop().create_future())
    try:
        yield driver
    finally:
        await driver.close()


async def driver_turn(driver: QemuDriver, numbers: Any, ports: Callable[[], Ports] = dict) -> Samples:
    """Milliseconds from nothing to running, and from the wish to end it to the end.

    `ports` has the next VM's id with its ports, where it is to have some; they are made and stay.
    """
    up, down = [], []
    for _ in range(TURNS):
        vm_id, of_vm = next(iter(ports().items()), (f"{next(numbers):016d}", ()))
        begun = time.perf_counter()
        await driver.perform(ProvisionDisk("provision", vm_id, BARE, "raw", 64), lambda word: None)
        boot = BootVm("boot", vm_id, 1, 1, MEMORY_MIB, "none", "raw", tuple(of_vm))
        booted = await driver.perform(boot, lambda word: None)
        assert isinstance(booted, Booted), booted
        up.append((time.perf_counter() - begun) * 1000)
        begun = time.perf_counter()
        ended = await driver.perform(EndVm("end", vm_id, 1), lambda word: None)
        assert isinstance(ended, Ended), ended
        down.append((time.perf_counter() - begun) * 1000)
    return {"create ms": up, "kill ms": down}


@asynccontextmanager
async def bare_node(state: Path) -> AsyncIterator[Process]:
    """A real node, on a state directory inside of one that is ours, that has an image to boot."""
    wish = {"source": str(bare_image(state.parent)), "name": "bare", "ready": "none"}
    async with node(state, simulated=False) as process:
        plain = wire(state)
        await asyncio.to_thread(plain.ask, f"{COMMANDS}.images.import-image", msgspec.json.encode(wish))
        plain.close()
        yield process


def create(plain: Wire, restart: str = "on-failure", **more: str) -> str:
    """A VM that runs; its id. `more` are options besides."""
    wish = {"image": "bare", "memory-mib": MEMORY_MIB, "restart": restart}
    wish |= {name.replace("_", "-"): value for name, value in more.items()}
    said = plain.ask(f"{COMMANDS}.compute.create-vm", msgspec.json.encode(wish))
    return said.rpartition(b'"vm-id":"')[2][:16].decode()


def delete(plain: Wire, vm_id: str) -> None:
    """And away with it."""
    plain.ask(f"{COMMANDS}.compute.delete-vm", msgspec.json.encode({"vm-id": vm_id, "kill": True}))


@asynccontextmanager
async def deaths(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """The end of a VM of a real node, killed by us or by a stranger, until a subscriber has the event."""
    state = context.directory / "state"
    async with bare_node(state), libvirt.beside("death", times=TURNS) as peers:
        plain = wire(state)
        endpoint = read_endpoint(state)
        client = await nats.connect(endpoint.url, user=endpoint.user or None, password=endpoint.password or None)
        subscription = await client.subscribe(f"aether.v1.{TENANT}.evt.*.vm.*.vm-exited")
        await client.flush()

        async def turn() -> Samples:
            by_stranger, by_us = [], []
            for _ in range(TURNS):
                vm_id = await asyncio.to_thread(create, plain, "never")
                pid = pid_of(state / "vms" / vm_id)
                begun = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                await subscription.next_msg(20)
                by_stranger.append((time.perf_counter() - begun) * 1000)
                await asyncio.to_thread(delete, plain, vm_id)
                vm_id = await asyncio.to_thread(create, plain, "never")
                begun = time.perf_counter()
                wish = msgspec.json.encode({"vm-id": vm_id, "kill": True})
                await client.publish(f"{COMMANDS}.compute.stop-vm", wish)
                await subscription.next_msg(20)
                by_us.append((time.perf_counter() - begun) * 1000)
                await asyncio.to_thread(delete, plain, vm_id)
            return {"ms": by_stranger, "kill ms": by_us}

        try:
            yield {OURS: turn, **peers}
        finally:
            plain.close()
            await client.close()


@asynccontextmanager
async def creates(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """VMs per second that clients of a real node create, each of whom waits for one after the other."""
    image = bare_image(context.directory)
    much = (ALONE, CLIENTS, EACH)
    state = context.directory / "state"
    async with (
        bare_node(state),
        libvirt.beside("creates", alone=ALONE, clients=CLIENTS, each=EACH) as peers,
    ):
        yield {
            OURS: lambda: asyncio.to_thread(creates_turn, state),
            "by hand": partial(asyncio.to_thread, by_hand.creates_turn, context.directory, image, much, paused=False),
            "paused": partial(asyncio.to_thread, by_hand.creates_turn, context.directory, image, much, paused=True),
            **peers,
        }


def creates_turn(state: Path) -> Samples:
    """For 1 client and for several; the VMs are deleted outside of what is measured."""
    plain = [wire(state) for _ in range(CLIENTS)]
    made: list[tuple[Wire, str]] = []

    def work(number: int, times: int) -> None:
        for _ in range(times):
            made.append((plain[number], create(plain[number])))

    def rate(clients: int, each: int) -> float:
        found = by_hand.together(clients, clients * each, lambda number: work(number, each))
        while made:
            delete(*made.pop())
        return found

    try:
        return {"1 client creates/s": [rate(1, ALONE)], f"{CLIENTS} clients creates/s": [rate(CLIENTS, EACH)]}
    finally:
        for each in plain:
            each.close()


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
        (
            Target("create ms", "<=", 1.4, "by hand"),
            Target("create ms", "<=", 15, "by hand", more=True),
            Target("create ms", "<=", 1.4, "by qemu.qmp"),
            Target("create ms", "<=", 1, "libvirt"),
            Target("kill ms", "<=", 10),
            Target("kill ms", "<=", 1, "libvirt"),
        ),
        rounds=5,
        note="The driver alone. It makes the overlay too, drops privileges, and reads back what names the process; by "
        "hand and by libvirt the guest gets the image itself, to read. libvirt's processes are reaped for it.",
        peers=("libvirt",),
    ),
    Row(
        "creates",
        f"VMs created one after the other over NATS by 1 client and by {CLIENTS}, until each runs (TCG)",
        creates,
        (
            Target("1 client creates/s", ">=", 0.8, "by hand"),
            Target(f"{CLIENTS} clients creates/s", ">=", 0.8, "by hand"),
            Target("1 client creates/s", ">=", 0.8, "paused"),
            Target(f"{CLIENTS} clients creates/s", ">=", 0.8, "paused"),
            Target("1 client creates/s", ">=", 1, "libvirt"),
            Target(f"{CLIENTS} clients creates/s", ">=", 1, "libvirt"),
        ),
        rounds=3,
        note="No VM can be created paused, so ours run; their boot sector halts the processor, after the firmware. "
        "`by hand` runs as well, `paused` does not.",
        peers=("libvirt",),
    ),
    Row(
        "death",
        "SIGKILL for QEMU, and the command to kill it, until a NATS subscriber has the event",
        deaths,
        (Target("ms", "<=", 8), Target("ms", "<=", 1, "libvirt"), Target("kill ms", "<=", 10)),
        rounds=5,
        peers=("libvirt",),
    ),
)
