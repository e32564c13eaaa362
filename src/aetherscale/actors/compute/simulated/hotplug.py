"""Ports that come and go while a simulated VM is there, in the order of the real driver."""

from __future__ import annotations

import asyncio
from typing import Final

from aetherscale.actors.compute.model.effects import PlugPort, PortPlugged, PortUnplugged, UnplugPort
from aetherscale.actors.compute.simulated.host import SimulatedProcess
from aetherscale.actors.network.ports import VmPorts
from aetherscale.kernel.fault import Fault

_CALL_LIMIT_S: Final = 5.0


async def change_port(
    effect: PlugPort | UnplugPort, process: SimulatedProcess | None, ports: VmPorts
) -> PortPlugged | PortUnplugged:
    """Make the effect true; `process` is the VM's, where there is one. Raises `Fault`."""
    is_silent = process is not None and process.behaviour.is_unresponsive
    if is_silent:
        await asyncio.sleep(_CALL_LIMIT_S)
    if isinstance(effect, UnplugPort):
        patience_s = 0.0 if is_silent else effect.patience_s
        card_left = process is not None and not await process.unplug(effect.port.tap, patience_s)
        await ports.close_ports(effect.vm_id, (effect.port,))
        return PortUnplugged(effect.key, card_left)
    if process is None:
        raise Fault("the VM does not run")
    if is_silent:
        raise Fault(f"QEMU is unresponsive: timed out after {_CALL_LIMIT_S:g} s")
    if effect.port.tap not in process.cards:
        await ports.open(effect.vm_id, (effect.port,), None)
        process.plug(effect.port, effect.slot)
    return PortPlugged(effect.key)
