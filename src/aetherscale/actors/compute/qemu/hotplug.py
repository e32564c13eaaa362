"""Ports that come and go while a VM is there: the order between what the network has of one, and what QEMU has."""

from __future__ import annotations

import logging
import os

from aetherscale.actors.compute.model.effects import PlugPort, PortPlugged, PortUnplugged, UnplugPort
from aetherscale.actors.compute.qemu.machine import Machine
from aetherscale.actors.compute.qemu.session import Rejected, Unresponsive
from aetherscale.actors.network.ports import VmPorts
from aetherscale.kernel.fault import Fault
from aetherscale.processes import descriptors

log = logging.getLogger(__name__)


async def change_port(
    effect: PlugPort | UnplugPort, machine: Machine | None, ports: VmPorts
) -> PortPlugged | PortUnplugged:
    """Make the effect true; `machine` is the VM's process, where there is one.

    Raises `Fault`, and what QMP raises where QEMU does not answer.
    """
    if isinstance(effect, UnplugPort):
        card_left = machine is not None and not await _unplugged(machine, effect)
        await ports.close_ports(effect.vm_id, (effect.port,))
        return PortUnplugged(effect.key, card_left)
    if machine is None:
        raise Fault("the VM does not run")
    await machine.attach()
    if not await machine.cards.has(effect.port.tap):
        await _plug(machine, effect, ports)
    _note(machine, effect.port.tap)
    return PortPlugged(effect.key)


async def _plug(machine: Machine, effect: PlugPort, ports: VmPorts) -> None:
    await machine.cards.clear(effect.port.tap)
    (descriptor,) = await ports.open(effect.vm_id, (effect.port,), None)
    try:
        await machine.cards.plug(effect.port.tap, effect.port.mac, effect.slot, descriptor)
    except Rejected as rejected:
        remedy = "restart the VM: a boot has the cards of all its ports"
        raise Fault(f"QEMU does not take the card: {rejected}", remedy) from rejected
    finally:
        os.close(descriptor)


def _note(machine: Machine, tap: str) -> None:
    """Write down which descriptor it is, by which the tap is made anew should another program remove it."""
    try:
        descriptor = descriptors.of_tap(machine.pid, tap)
        if descriptor is not None:
            machine.directory.note_tap(tap, descriptor)
    except OSError as refused:
        log.warning("VM %s: the tap %s cannot be made anew if it is lost: %s", machine.directory.vm_id, tap, refused)


async def _unplugged(machine: Machine, effect: UnplugPort) -> bool:
    """Whether the guest has let go of the card, or is no more."""
    try:
        await machine.attach()
        return await machine.cards.unplug(effect.port.tap, effect.patience_s)
    except Unresponsive as silent:
        # The tap goes all the same, which is as good as the cable.
        log.warning("VM %s keeps its card of %s: %s", effect.vm_id, effect.port.tap, silent)
        return machine.gone.is_set()
