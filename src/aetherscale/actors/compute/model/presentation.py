"""How a VM looks from outside, and when a task has come to its end. Pure."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from ipaddress import IPv6Address
from typing import Final, Literal

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.events import VmEvent
from aetherscale.actors.compute.model.evolve import evolve
from aetherscale.actors.compute.model.publishing import host_port_key
from aetherscale.actors.compute.model.rulecommands import GROUP
from aetherscale.actors.compute.model.sentences import VM_DESCRIPTIONS, describe_pause
from aetherscale.actors.compute.model.state import Port, ProcessIdentity, Vm
from aetherscale.actors.compute.model.views import (
    AddressView,
    CardPhase,
    ExitView,
    InitState,
    InitView,
    PortView,
    VmView,
)
from aetherscale.actors.images.model import events as images
from aetherscale.actors.network.model import events as networks
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.failures import Failure
from aetherscale.kernel.registry import Kind
from aetherscale.kernel.replies import Chunk, status
from aetherscale.kernel.reservations import Holding, Name, NodeKey, Use
from aetherscale.kernel.times import to_rfc3339

MAC: Final = "mac"
"""The kind of the keys that the MAC addresses of ports are reserved by."""
ADDRESS: Final = "address"
"""The kind of the keys that the IP addresses of ports are reserved by."""
HOST_PORT: Final = "hostport"
"""The kind of the keys that the ports of the host are reserved by which lead to guests."""


def view(vm: Vm, node: str, revision: int, requested_by: str | None = None) -> VmView:
    """The view of a VM that lives on `node`; `revision` is the version of its stream."""
    spec, process = vm.spec, vm.run.process
    return VmView(
        id=vm.id,
        name=vm.name,
        node=node,
        phase=vm.shown,
        requested=vm.requested,
        observed=vm.observed,
        since=to_rfc3339(vm.phase_since_us),
        image=spec.image,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        disk_gib=-(-spec.disk_mib // 1024),
        restart=spec.restart,
        autostart=spec.autostart,
        ports=[_port(vm, port) for port in vm.ports.every],
        switches=spec.switches,
        publish=spec.publish,
        ssh_keys=spec.ssh_keys,
        user=spec.user,
        host_loopback=spec.host_loopback,
        groups=list(vm.rules.groups),
        forwards=list(vm.rules.forwards),
        rules_revision=vm.rules.revision,
        rules_applied=vm.rules.applied,
        failure=vm.failure or vm.rules.failure or vm.ports.failure,
        revision=revision,
        labels=spec.labels,
        accelerator=process.accelerator if process else None,
        isolation=isolation(process) if process else None,
        process_user=process.process_user if process else None,
        paused_reason=vm.run.paused_reason,
        restarts=vm.restarts,
        exit=_exit(vm.exit),
        ready_by=spec.ready_channel,
        requested_by=requested_by,
        first_boot=spec.first_boot,
        init_script=_init(vm),
        cloud_init_sha256=spec.cloud_init_sha256,
    )


def _init(vm: Vm) -> InitView | None:
    init = vm.init
    if not init.sha256:
        return None
    state: InitState = "awaited"
    if init.outcome is not None:
        ended: InitState = "succeeded" if init.exit_status == 0 else "failed"
        state = ended if init.outcome == "ended" else init.outcome
    return InitView(init.sha256, state, init.exit_status, init.output)


def isolation(process: ProcessIdentity) -> Literal["kvm", "none"]:
    """What stands between this QEMU's guest and the host."""
    # Older events do not say whose process it was: their VMs are shown as they always were.
    return "kvm" if process.accelerator == "kvm" and process.process_user in ("own", None) else "none"


def holds(vm: Vm) -> Sequence[Holding]:
    """What a VM holds until it is deleted: its name, the image that its disk is an overlay on, its networks, addresses
    and ports of the host, and the groups that it bears.
    """
    if vm.phase == "deleted" or vm.is_orphan:
        return ()
    found: list[Holding] = [Name(events.KIND, vm.name)]
    if vm.spec.image_id:
        found.append(Use(images.KIND, vm.spec.image_id))
    ports = vm.ports.specs()
    found.extend(Use(networks.KIND, network_id) for network_id in dict.fromkeys(port.network_id for port in ports))
    for port in ports:
        found.append(NodeKey(MAC, port.mac))
        found.extend(NodeKey(ADDRESS, address_key(port.network_id, ip)) for ip in (port.ipv4, port.ipv6) if ip)
    found.extend(NodeKey(MAC, switch.mac) for switch in vm.spec.switches)
    found.extend(NodeKey(HOST_PORT, host_port_key(port)) for port in vm.spec.publish)
    found.extend(NodeKey(HOST_PORT, host_port_key(forward)) for forward in vm.rules.forwards)
    found.extend(Use(GROUP, group.group_id) for group in vm.rules.groups)
    return found


def address_key(network_id: str, address: str) -> str:
    """The key that an address is reserved by, in its network."""
    return f"{network_id}-{address}"


def _port(vm: Vm, port: Port) -> PortView:
    spec = port.spec
    addresses = [AddressView(spec.ipv4, "lease")] if spec.ipv4 else []
    # One that the guest does not form from its MAC was chosen, for the public bridge.
    addresses += [AddressView(spec.ipv6, "slaac" if _is_formed(spec.ipv6) else "lease")] if spec.ipv6 else []
    return PortView(spec.network, spec.network_id, spec.mac, spec.tap, addresses, spec.allowed, _card(vm, port))


def _card(vm: Vm, port: Port) -> CardPhase:
    """Where a guest is with the card of a port."""
    if port.is_leaving:
        return "unplugging"
    if port.id in vm.run.cards:
        return "plugged"
    return "plugging" if vm.has_begun and port.id in vm.run.slots else "unplugged"


def _is_formed(ipv6: str) -> bool:
    return IPv6Address(ipv6).packed[11:13] == b"\xff\xfe"


def announce(vm: Vm, event: VmEvent) -> Chunk | None:
    """The status that a waiting caller is told of an event, if any."""
    match event:
        case events.VmRequested():
            return status("allocating", vm_id=vm.id, name=vm.name)
        case events.DiskProvisioned() if vm.requested == "running":
            return status("starting", vm_id=vm.id)
        case events.VmStartRequested() | events.VmExited() if vm.phase == "booting":
            return status("starting", vm_id=vm.id)
        case events.VmBooted():
            return status("running", vm_id=vm.id, accelerator=event.accelerator)
        case events.VmReady() if vm.init.is_awaited:
            return status("awaiting-init", vm_id=vm.id)
        case events.VmInitEnded():
            return status("init-ended", vm_id=vm.id, outcome=event.outcome, exit_status=event.exit_status)
        case events.VmStopRequested() | events.VmRestartRequested():
            return status("stopping", vm_id=vm.id, **_grace(vm))
        case events.VmStopForced():
            return status("forcing", vm_id=vm.id, waited_s=event.waited_s)
        case events.VmDeleteRequested():
            return status("deleting", vm_id=vm.id, **_grace(vm))
        case events.VmRestartScheduled():
            return status("restarting", vm_id=vm.id, attempt=event.attempt, not_before=event.not_before)
        case events.VmStepFailed() if event.retry_at is not None:
            return status("retrying", vm_id=vm.id, step=event.step, reason=event.reason, not_before=event.retry_at)
        case events.VmUndone():
            return status("undoing", vm_id=vm.id)
        case events.GroupsSet() | events.ForwardAdded() | events.ForwardRemoved():
            return status("applying-rules", vm_id=vm.id)
        case events.PortAdded():
            return status("attaching", vm_id=vm.id, network=event.port.network)
        case events.PortRemoved():
            return status("detaching", vm_id=vm.id)
        case _:
            return None


def _grace(vm: Vm) -> dict[str, float]:
    """How long the guest has until it is ended, where it is asked first."""
    return {"grace_s": vm.grace_s} if vm.phase == "shutting-down" else {}


def is_up(vm: Vm, _: object = None, *, until: str = "it was ready") -> bool:
    """Whether a VM that was to come up has; raises `Refused` where it will not. `until` says what is waited for."""
    if vm.rolled_back:
        if vm.phase == "deleted" or vm.attempt.blocked:
            cleanup = "has been removed" if vm.phase == "deleted" else "could not be removed"
            raise _failed(vm, f"the VM could not be created, and what had been created of it {cleanup}")
        return False
    if vm.requested == "deleted":
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} was deleted before {until}")
    if vm.shown == "failed":
        raise _failed(vm, f"the VM {vm.name!r} failed")
    if vm.phase == "paused":
        what, way_on = describe_pause(vm)
        raise Refused(Reason.INTERNAL, what, remedy=way_on, details={"vm-id": vm.id, "phase": "paused"})
    if vm.requested == "stopped":
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} was stopped before {until}", details={"vm-id": vm.id})
    return vm.phase == "ready" or (vm.phase == "running" and vm.spec.ready_channel == "none")


def is_stopped(vm: Vm, _: object = None) -> bool:
    """Whether a VM that was to stop has; raises `Refused` where it cannot be stopped."""
    if vm.attempt.blocked and vm.observed in ("running", "paused"):
        raise _failed(vm, f"the VM {vm.name!r} could not be stopped")
    # The one that starts again at once has been down all the same.
    return vm.is_down or vm.phase == "deleted" or (vm.phase == "booting" and vm.observed == "exited")


def is_deleted(vm: Vm, _: object = None) -> bool:
    """Whether a VM that was to be deleted is; raises `Refused` where that failed."""
    if vm.shown == "failed" and vm.attempt.blocked:
        raise _failed(vm, f"the VM {vm.name!r} could not be deleted")
    return vm.phase == "deleted"


def _failed(vm: Vm, what: str) -> Refused:
    failure = vm.failure or Failure("", "no reason is on record")
    why = Task("why", "vm", vm.name)
    return failure.refused(f"{what}: {failure.phase}: {failure.reason}", instead=why, vm_id=vm.id)


def _exit(event: events.VmExited | None) -> ExitView | None:
    return ExitView(event.reason, event.exit_code, event.signal, event.detail) if event else None


VM_KIND: Final[Kind[Vm]] = Kind(
    events.KIND, Vm, typing.get_args(VmEvent), evolve, view, VM_DESCRIPTIONS, version=11, keys=(MAC, ADDRESS, HOST_PORT)
)
