"""Compares a host with the VMs that the log has. Both drivers do, at a start, on a timer and after a fault."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from aetherscale.actors.compute.driver import ComputeDriver, Process
from aetherscale.actors.compute.model import commands
from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.state import ProcessIdentity, Vm
from aetherscale.runtime.component import Report

log = logging.getLogger(__name__)

ADOPT_AT_ONCE: Final = 32
"""VMs that are looked for at the same time after a restart of the node."""


async def reconcile(driver: ComputeDriver, expected: Mapping[str, Vm], boot_id: str, report: Report[Any]) -> None:
    """Adopt the processes that are alive and unwatched, and report those that are gone and those that are orphaned.

    `boot_id` names the time since the host was started last. No disk is ever thrown away for what is found.
    """
    gate = asyncio.Semaphore(ADOPT_AT_ONCE)

    async def find(vm: Vm, identity: ProcessIdentity) -> None:
        run = vm.run.number
        process = Process(vm.id, run, identity.pid, identity.start_ticks, identity.boot_id, vm.spec.ready_channel)
        async with gate:
            alive = await driver.adopt(process)
        await report(commands.VmAdopted(vm.id, run) if alive else commands.VmLost(vm.id, run, boot_id))

    running = [(vm, vm.run.process) for vm in expected.values() if vm.run.process is not None]
    await asyncio.gather(*(find(vm, process) for vm, process in running if not driver.watches(vm.id, vm.run.number)))
    before = dict(expected)
    for found in await driver.inventory():
        vm = expected.get(found.vm_id)
        orphan = commands.VmOrphan(found.vm_id, found.has_process, found.has_directory)
        # Of one that has moved on meanwhile, what was seen may be long over.
        if vm is before.get(found.vm_id) and COMPUTE.decide(vm, orphan, 0):
            log.warning("VM %s has an orphaned process or directory", found.vm_id)
            await report(orphan)
