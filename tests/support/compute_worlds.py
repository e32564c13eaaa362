"""Two worlds that a compute driver can act on: a simulated host, and this one with real QEMU under TCG."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from qemu.qmp import QMPClient

from aetherscale.actors.compute.driver import ComputeDriver, Process
from aetherscale.actors.compute.model.effects import (
    Booted,
    BootVm,
    ComputeObservation,
    ComputeOutcome,
    DiskProvisioned,
    ProvisionDisk,
)
from aetherscale.actors.compute.qemu.driver import QemuDriver
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.compute.simulated.host import Behaviour, SimulatedHost
from aetherscale.actors.images.files.header import write_overlay
from aetherscale.identifiers import boot_id
from aetherscale.kernel.errors import Refused

PATIENCE_S: Final = 90.0
"""A bound on every wait: far more than a loaded machine needs."""
VM: Final = "0123456789abcdef"
OTHER_VM: Final = "1123456789abcdef"
TINY: Final = "2000000000000001"
BARE: Final = "2000000000000002"
"""An image of 1 MiB with nothing on it: its guest runs at once, never gets ready, ignores ACPI."""

T = TypeVar("T", bound=ComputeObservation)
Outcome = TypeVar("Outcome", bound=ComputeOutcome)


def nothing() -> Awaitable[None]:
    """What is done already."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


class Watcher:
    """Everything that a driver has observed, in order."""

    def __init__(self) -> None:
        self.seen: list[ComputeObservation] = []
        self._news = asyncio.Event()

    def __call__(self, observation: ComputeObservation) -> Awaitable[None]:
        self.seen.append(observation)
        self._news.set()
        return nothing()

    def of(self, kind: type[T]) -> list[T]:
        return [observation for observation in self.seen if isinstance(observation, kind)]

    async def until(self, kind: type[T]) -> T:
        """The first observation of a kind."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.of(kind):
                self._news.clear()
                await self._news.wait()
        return self.of(kind)[0]


class World(Protocol):
    """A host, and what can be done to it behind a driver's back."""

    def driver(self) -> ComputeDriver:
        """A driver as a node makes one at its start."""
        ...

    def kill(self, booted: Booted) -> None:
        """SIGKILL for a VM's process."""
        ...

    def processes(self, vm_id: str) -> int:
        """How many processes the VM has."""
        ...

    async def power_off(self, vm_id: str) -> None:
        """Power the guest off from the inside while no node watches; returns when it has ended."""
        ...

    def occupied(self, host_port: int) -> AbstractContextManager[None]:
        """Another program has this port of TCP on the host's loopback."""
        ...

    def is_open(self, host_port: int) -> bool:
        """Whether something listens at this port of TCP on the host's loopback."""
        ...


class SimulatedWorld:
    def __init__(self) -> None:
        self.host = SimulatedHost(behaviour=self._behaviour, image_mib=lambda image_id: 25 if image_id == TINY else 1)
        self.images: dict[str, str] = {}

    def driver(self, ports: Any = None) -> ComputeDriver:
        world = self

        class Noting(SimulatedDriver):
            """Remembers which image a VM has, since that is what its guest depends on."""

            async def perform(self, effect: object, progress: object) -> ComputeOutcome:
                if isinstance(effect, ProvisionDisk):
                    world.images[effect.vm_id] = effect.image_id
                    if effect.image_id not in (TINY, BARE):
                        world.host.image_mib = lambda image_id: None
                return await super().perform(effect, progress)  # type: ignore[arg-type]

        return Noting(self.host, ports, ports)

    def kill(self, booted: Booted) -> None:
        process = self.host.live(booted.vm_id)
        assert process is not None
        process.die(None, 9)

    def processes(self, vm_id: str) -> int:
        return int(self.host.live(vm_id) is not None)

    async def power_off(self, vm_id: str) -> None:
        process = self.host.live(vm_id)
        assert process is not None
        await process.readers.attach().send(b"poweroff\n")
        await process.guest_ended.wait()

    @contextmanager
    def occupied(self, host_port: int) -> Iterator[None]:
        self.host.taken_ports.add(f"tcp-{host_port}")
        yield
        self.host.taken_ports.remove(f"tcp-{host_port}")

    def is_open(self, host_port: int) -> bool:
        return self.host.leads_to(f"tcp-{host_port}") is not None

    def _behaviour(self, vm_id: str) -> Behaviour:
        if self.images.get(vm_id) == TINY:
            return Behaviour()
        return Behaviour(ready_after_s=None, shutdown_s=None, has_agent=False)


class QemuWorld:
    """Real QEMUs, in a state directory of their own, which is the same as that of another world on it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.images_dir = state_dir / "images"

    def store(self, tiny_image: Path) -> None:
        """Make the state directory, with its images."""
        self.images_dir.mkdir(parents=True)
        os.link(tiny_image, self.images_dir / f"{TINY}.raw")
        with (self.images_dir / f"{BARE}.raw").open("wb") as bare:
            bare.truncate(1024 * 1024)

    def driver(self, **options: object) -> QemuDriver:
        return QemuDriver(
            self.state_dir,
            boot_id(),
            image_path=self._image_path,
            write_overlay=write_overlay,
            **{"accelerator": "tcg", "allow_unisolated": True, **options},  # type: ignore[arg-type]
        )

    def kill(self, booted: Booted) -> None:
        os.kill(booted.pid, signal.SIGKILL)

    def processes(self, vm_id: str) -> int:
        return len(self.pids(vm_id))

    async def power_off(self, vm_id: str) -> None:
        directory = VmDirectory(self.state_dir / "vms", vm_id)
        monitor = QMPClient()
        async with asyncio.timeout(PATIENCE_S):
            await monitor.connect(directory.connect("qmp.sock"))
            await monitor.execute("system_powerdown")
            while (await monitor.events.get())["event"] != "SHUTDOWN":
                pass
            await monitor.disconnect()

    @contextmanager
    def occupied(self, host_port: int) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", host_port)):
            yield

    def is_open(self, host_port: int) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            return client.connect_ex(("127.0.0.1", host_port)) == 0

    async def status(self, vm_id: str) -> object:
        """What QEMU itself says of its state, while no node is connected to it."""
        monitor = QMPClient()
        async with asyncio.timeout(PATIENCE_S):
            await monitor.connect(VmDirectory(self.state_dir / "vms", vm_id).connect("qmp.sock"))
            answer = await monitor.execute("query-status")
            await monitor.disconnect()
        assert isinstance(answer, dict)
        return answer["status"]

    def pids(self, vm_id: str) -> list[int]:
        """All processes that work in the VM's directory."""
        directory = str((self.state_dir / "vms" / vm_id).resolve())
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    place = os.readlink(f"/proc/{entry.name}/cwd")
                except OSError:
                    continue
                if place.removesuffix(" (deleted)") == directory:
                    found.append(int(entry.name))
        return found

    def directory(self, vm_id: str = VM) -> Path:
        return self.state_dir / "vms" / vm_id

    def _image_path(self, image_id: str, image_format: str, sha256: str | None) -> Path:
        return self.images_dir / f"{image_id}.{image_format}"


@asynccontextmanager
async def node(driver: ComputeDriver) -> AsyncIterator[Watcher]:
    """A driver that is started, and closed at the end."""
    watcher = Watcher()
    await driver.start(watcher)
    try:
        yield watcher
    finally:
        await driver.close()


def say_nothing(phase: str) -> None:
    """A progress that nobody follows."""


async def ensure(driver: ComputeDriver, effect: object, kind: type[Outcome]) -> Outcome:
    """Perform an effect whose outcome has to be of a kind."""
    async with asyncio.timeout(PATIENCE_S):
        outcome = await driver.perform(effect, say_nothing)
    assert isinstance(outcome, kind), outcome
    return outcome


def provision(image: str = BARE, *, vm_id: str = VM, disk_mib: int = 64) -> ProvisionDisk:
    return ProvisionDisk("provision", vm_id, image, "raw", disk_mib)


def boot(*, vm_id: str = VM, run: int = 1, cpus: int = 1, memory_mib: int = 192, ready: str = "channel") -> BootVm:
    return BootVm(f"boot {run}", vm_id, run, cpus, memory_mib, ready, "raw")  # type: ignore[arg-type]


async def booted(driver: ComputeDriver, image: str = BARE, *, vm_id: str = VM, ready: str = "channel") -> Booted:
    """A VM that has just been booted."""
    await ensure(driver, provision(image, vm_id=vm_id), DiskProvisioned)
    return await ensure(driver, boot(vm_id=vm_id, ready=ready), Booted)


def identity(of: Booted, ready: str = "channel") -> Process:
    """What the log has of a process."""
    return Process(of.vm_id, of.run, of.pid, of.start_ticks, of.boot_id, ready)  # type: ignore[arg-type]


async def agent_answers(driver: ComputeDriver, vm_id: str = VM) -> None:
    """Wait until programs can be run in the guest: a guest may be ready before its agent is."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await driver.execute(vm_id, ["true"], PATIENCE_S)
            except Refused as refused:
                if not refused.retryable:
                    raise
            else:
                return


async def type_in(driver: ComputeDriver, line: str, vm_id: str = VM) -> None:
    """Type a line into the guest's shell."""
    console = await driver.console(vm_id)
    await console.send(line.encode() + b"\n")
    await console.close()


async def read_until(output: AsyncIterator[bytes], text: bytes) -> bytes:
    """What a stream says up to and including a text."""
    said = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for piece in output:
                said += piece
                if text in said:
                    return said
    except TimeoutError:
        raise AssertionError(f"waited for {text!r}, said was: {said[-2000:]!r}") from None
    raise AssertionError(f"the stream ended without {text!r}: {said[-2000:]!r}")


async def whole(output: AsyncIterator[bytes]) -> bytes:
    """All of a stream, to its end."""
    async with asyncio.timeout(PATIENCE_S):
        return b"".join([piece async for piece in output])
