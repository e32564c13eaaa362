"""What a simulated host has to have before a VM can be booted."""

from __future__ import annotations

from aetherscale.actors.compute.model.effects import BootVm
from aetherscale.actors.compute.ports import missing_switch, missing_user_data
from aetherscale.actors.compute.simulated.host import SimulatedHost
from aetherscale.kernel.fault import Fault


def require_bootable(host: SimulatedHost, effect: BootVm) -> None:
    """Raises `Fault` where the host has not what a boot needs."""
    if effect.vm_id not in host.disks:
        raise Fault("the VM has no disk", "delete the VM and create it again", retryable=False)
    if effect.memory_mib > host.memory_mib:
        raise Fault(
            f"not enough memory: the VM needs {effect.memory_mib} MiB, "
            f"{host.memory_mib} MiB are available on this host",
            "stop another VM, or create this one with less: --memory",
            retryable=False,
        )
    if effect.gives_user_data and effect.vm_id not in host.kept_user_data:
        raise missing_user_data(effect.vm_id)
    for switch in effect.switches:
        if switch.path in host.missing_switches:
            raise missing_switch(switch.path)
    for port in effect.publish:
        if host.has_taken(port, effect.vm_id):
            raise Fault(
                f"the port {port.host_port}/{port.protocol} of the host is taken by another program",
                retryable=False,
            )
