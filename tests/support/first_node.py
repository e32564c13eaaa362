"""A node's driver in a process of its own, to be killed: it boots a VM, says so on stdout as JSON, and waits.

    python -m tests.support.first_node STATE_DIR IMAGE_ID [MOMENT]

With a moment it ends itself there, by SIGKILL, as a node does that is hit in the middle of a boot.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from aetherscale.actors.compute.model.effects import Booted, DiskProvisioned
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.compute.qemu.machine import Machine
from aetherscale.processes import launch
from tests.support.compute_worlds import QemuWorld, boot, ensure, node, provision

MOMENTS = (
    "before exec",
    "after exec",
    "before the pid is written down",
    "after the pid is written down",
    "before the guest runs",
    "after the guest runs",
)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(moment: str) -> None:
    """Make this process end at a moment of its next boot."""
    spawn, write, run_on = launch.spawn, VmDirectory.write_record, Machine.run_on

    def killing_spawn(*arguments: Any, **options: Any) -> int:
        if moment == "before exec":
            _die()
        pid = spawn(*arguments, **options)
        if moment == "after exec":
            _die()
        return pid

    def killing_write(self: VmDirectory, record: Any) -> None:
        if moment == "before the pid is written down" and record.pid is not None:
            _die()
        write(self, record)
        if moment == "after the pid is written down" and record.pid is not None:
            _die()

    async def killing_run_on(self: Machine) -> None:
        if moment == "before the guest runs":
            _die()
        await run_on(self)
        if moment == "after the guest runs":
            _die()

    patched: list[tuple[object, str, Callable[..., Any] | Callable[..., Awaitable[Any]]]] = [
        (launch, "spawn", killing_spawn),
        (VmDirectory, "write_record", killing_write),
        (Machine, "run_on", killing_run_on),
    ]
    for owner, name, replacement in patched:
        setattr(owner, name, replacement)


async def main(state_dir: Path, image_id: str) -> None:
    driver = QemuWorld(state_dir).driver()
    async with node(driver):
        await ensure(driver, provision(image_id), DiskProvisioned)
        booted = await ensure(driver, boot(), Booted)
        sys.stdout.write(msgspec.json.encode(booted).decode() + "\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    if len(sys.argv) > 3:
        arm(sys.argv[3])
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
