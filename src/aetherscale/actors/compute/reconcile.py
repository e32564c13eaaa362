"""Compares a host with the VMs that the log has. Both drivers do, at a start, on a timer and after a fault."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

from aetherscale.actors.compute.driver import ComputeDriver, Process
from aetherscale.actors.compute.model import commands
from aetherscale.actors.compute.model.commands import NO_RULES, PortSpec, VmRules
from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.effects import ApplyRules, RulesApplied
from aetherscale.actors.compute.model.state import ProcessIdentity, Vm
from aetherscale.actors.network.ports import Firewall, VmPorts
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Report

log = logging.getLogger(__name__)

ADOPT_AT_ONCE: Final = 32
"""VMs that are looked for at the same time after a restart of the node."""


def ports_of(expected: Mapping[str, Vm]) -> Mapping[str, Sequence[PortSpec]]:
    """The ports of all VMs that have some on the host, by the VMs' ids. What is left of a deleted VM has none."""
    there = [vm for vm in expected.values() if vm.phase != "deleted" and not vm.is_orphan]
    return {vm.id: vm.ports.specs() for vm in there if vm.ports.every}


def rules_of(expected: Mapping[str, Vm]) -> Mapping[str, VmRules]:
    """The groups and forwards of all VMs that have some, by the VMs' ids. One that is being removed has none: no guest
    is left that could need them, and they may be gone already.
    """
    there = [vm for vm in expected.values() if vm.requested != "deleted" or not (vm.is_down or vm.phase == "deleted")]
    return {vm.id: rules for vm in there if (rules := vm.rules.standing) != NO_RULES}


async def _tried(work: Awaitable[None], what: str) -> None:
    """What the host refuses is tried again with the next reconciliation.

    Until then nothing is open that was not, and the VMs have to be looked after all the same.
    """
    try:
        await work
    except (Fault, OSError) as failure:
        log.warning("the %s of VMs could not be restored, which is tried again: %s", what, failure)


async def apply_rules(firewall: Firewall, effect: ApplyRules) -> RulesApplied:
    """Make an effect on a VM's groups and forwards true. Raises `Fault`."""
    await firewall.apply_rules(effect.vm_id, effect.rules, keep_established=effect.keep_established)
    return RulesApplied(effect.key, effect.revision)


async def reconcile(
    driver: ComputeDriver,
    ports: VmPorts,
    firewall: Firewall,
    expected: Mapping[str, Vm],
    boot_id: str,
    report: Report[Any],
) -> None:
    """Adopt the processes that are alive and unwatched, and report those that are gone and those that are orphaned.

    Before that the rules of ports are made those of the VMs, with their groups and forwards, and after it taps are made
    anew for adopted processes that have lost theirs. `boot_id` names the time since the host was started last. No disk
    is ever thrown away for what is found.
    """
    driver.scripts.remove_unknown(expected)
    firewall.restore_rules(rules_of(expected))
    await _tried(ports.restore(ports_of(expected)), "rules")
    gate = asyncio.Semaphore(ADOPT_AT_ONCE)

    async def find(vm: Vm, identity: ProcessIdentity) -> None:
        run = vm.run.number
        process = Process(vm.id, run, identity.pid, identity.start_ticks, identity.boot_id, vm.spec.ready_channel)
        async with gate:
            alive = await driver.adopt(process)
        await report(commands.VmAdopted(vm.id, run) if alive else commands.VmLost(vm.id, run, boot_id))

    running = [(vm, vm.run.process) for vm in expected.values() if vm.run.process is not None]
    await asyncio.gather(*(find(vm, process) for vm, process in running if not driver.watches(vm.id, vm.run.number)))
    await _tried(ports.reconnect(), "taps")
    before = dict(expected)
    for found in await driver.inventory():
        vm = expected.get(found.vm_id)
        orphan = commands.VmOrphan(found.vm_id, found.has_process, found.has_directory)
        # Of one that has moved on meanwhile, what was seen may be long over.
        if vm is before.get(found.vm_id) and COMPUTE.decide(vm, orphan, 0):
            log.warning("VM %s has an orphaned process or directory", found.vm_id)
            await report(orphan)
