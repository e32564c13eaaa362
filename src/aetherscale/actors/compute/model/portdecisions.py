"""What follows when a caller attaches a VM to a network or detaches it, and when the host could not do it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.commands import MAX_PORTS, PortSpec
from aetherscale.actors.compute.model.events import Step, VmEvent
from aetherscale.actors.compute.model.portcommands import (
    AttachPort,
    AttachVmOptions,
    DetachPort,
    DetachVmOptions,
    PortCommand,
)
from aetherscale.actors.compute.model.ruledecisions import LONGEST_WAIT, require_wanted
from aetherscale.actors.compute.model.state import FREE, HOT_SLOTS, UP, Port, Vm
from aetherscale.kernel.attempts import ATTEMPT_LIMIT, backoff
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.failures import EffectFailed


def change_ports(vm: Vm, command: PortCommand) -> Sequence[VmEvent]:
    """The events that follow; none where things are as they were asked to be. Raises `Refused`."""
    require_wanted(vm)
    match command:
        case AttachPort():
            return _attached(vm, command.port)
        case DetachPort():
            return _detached(vm, port_in_network(vm, command.network_id))


def port_in_network(vm: Vm, network: str) -> Port | None:
    """The port of a VM in a network, by its name or id: it has one, or none. One that is leaving is there until nothing
    is left of it.
    """
    return next((port for port in vm.ports.every if network in (port.spec.network, port.spec.network_id)), None)


def to_plug(vm: Vm) -> PortSpec | None:
    """The next port of which the guest is to be given the card."""
    return next((port for port in vm.ports.staying() if port.tap not in vm.run.cards), None)


def to_unplug(vm: Vm) -> PortSpec | None:
    """The next port of which nothing is to be left."""
    return next((port.spec for port in vm.ports.every if port.is_leaving), None)


def failed_to_plug(vm: Vm, port: PortSpec, failed: EffectFailed, at_us: int) -> Sequence[VmEvent]:
    """It is tried again, or else the VM is to have the port no more."""
    retry_at = vm.ports.attempt.retry_at(at_us, retryable=failed.retryable)
    event = _failed(vm, "plugging", failed, retry_at)
    return (event,) if retry_at is not None else (event, events.PortRemoved(port.tap, failed=True))


def failed_to_unplug(vm: Vm, failed: EffectFailed, at_us: int) -> Sequence[VmEvent]:
    """What is to be gone is never given up."""
    return (_failed(vm, "unplugging", failed, backoff(at_us, min(vm.ports.attempt.number, LONGEST_WAIT))),)


def is_attached(vm: Vm, options: AttachVmOptions) -> bool:
    """Whether a VM has the port that was asked for; raises `Refused` where it does not come, or was taken away before.

    One that comes up or goes down is not asked before that has ended, since its next boot may have what this one lacks.
    """
    _require_there(vm)
    port = port_in_network(vm, options.network)
    if port is not None and not port.is_leaving:
        return vm.is_down or vm.phase == "failed" or (vm.phase in UP and port.id in vm.run.cards)
    failure = vm.ports.failure
    if port is not None and failure is not None and failure.phase == "plugging":
        what = f"the VM {vm.name!r} could not be attached to the network {port.spec.network!r}: {failure.reason}"
        raise failure.refused(what, instead=Task("why", "vm", vm.name), vm_id=vm.id)
    raise Refused(
        Reason.CONFLICT,
        f"the VM {vm.name!r} was detached from the network {options.network!r} before its guest had the card",
        remedy=Task("why", "vm", vm.name),
        details={"vm-id": vm.id},
    )


def is_detached(vm: Vm, options: DetachVmOptions) -> bool:
    """Whether nothing is left of the port that was to go; raises `Refused` where that does not come for long."""
    _require_there(vm)
    port, failure = port_in_network(vm, options.network), vm.ports.failure
    if port is None:
        return True
    is_next = to_unplug(vm) == port.spec
    if is_next and failure is not None and failure.phase == "unplugging" and vm.ports.attempt.number > ATTEMPT_LIMIT:
        what = f"the VM {vm.name!r} could not be detached from the network {port.spec.network!r}"
        again = f"it is tried again: {failure.reason}"
        raise failure.refused(f"{what}; {again}", instead=Task("why", "vm", vm.name), vm_id=vm.id)
    return False


def _require_there(vm: Vm) -> None:
    if vm.requested == "deleted":
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} was deleted before its ports were changed")


def _attached(vm: Vm, port: PortSpec) -> Sequence[VmEvent]:
    if not vm.ports.made:
        instead = "ports on VDE switches alone" if vm.spec.switches else "user-mode networking instead of ports"
        raise Refused(
            Reason.CONFLICT,
            f"the VM {vm.name!r} was created without a network, and has {instead}",
            field="vm-id",
            remedy="create a VM in a network",
        )
    before = port_in_network(vm, port.network_id)
    if before is not None and not before.is_leaving:
        return ()
    if before is not None:
        raise Refused(
            Reason.CONFLICT,
            f"the VM {vm.name!r} is being detached from the network {port.network!r}",
            field="network",
            retryable=True,
            remedy=Task("vm", "show", vm.name),
        )
    if len(vm.ports.every) + len(vm.spec.switches) >= MAX_PORTS:
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} has {MAX_PORTS} ports, and no VM more", field="network")
    if vm.has_begun and FREE not in vm.run.slots:
        raise Refused(
            Reason.CONFLICT,
            f"the VM {vm.name!r} was given {HOT_SLOTS} cards since it was started, and has no slot for another",
            field="network",
            remedy=("a restart makes room: ", Task("vm", "restart", vm.name)),
        )
    return (events.PortAdded(port),)


def _detached(vm: Vm, port: Port | None) -> Sequence[VmEvent]:
    if port is None or port.is_leaving:
        return ()
    # One that may yet fail to be plugged in is none to rely on.
    begun = {*vm.run.cards, *(each.tap for each in vm.run.ports)}
    if not any(each.tap != port.id and (each.tap in begun or not vm.has_begun) for each in vm.ports.staying()):
        if vm.spec.switches:
            why = "a VM that was created in a network stays in one, whatever switches it is on"
        else:
            why = "without any it would have user-mode networking from its next start on"
        raise Refused(
            Reason.CONFLICT,
            f"the VM {vm.name!r} has no other port that its guest has the card of; {why}",
            field="network",
            remedy="attach it to another network first",
        )
    return (events.PortRemoved(port.id),)


def _failed(vm: Vm, step: Step, failed: EffectFailed, retry_at: str | None) -> events.VmStepFailed:
    return events.VmStepFailed(
        step=step,
        run=vm.run.number,
        attempt=vm.ports.attempt.number,
        reason=failed.reason,
        hint=failed.hint,
        log_tail=failed.log_tail,
        retry_at=retry_at,
    )
