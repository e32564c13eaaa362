"""What follows when a caller changes a VM's groups or forwards, and when the host could not apply a change. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from msgspec.structs import replace

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.commands import MAX_GROUPS
from aetherscale.actors.compute.model.effects import Forward
from aetherscale.actors.compute.model.events import VmEvent
from aetherscale.actors.compute.model.rulecommands import (
    MAX_FORWARDS,
    AddForward,
    AddForwardOptions,
    AttachGroup,
    DetachGroup,
    GroupOfVmOptions,
    RemoveForward,
    RemoveForwardOptions,
    RuleCommand,
)
from aetherscale.actors.compute.model.state import Vm
from aetherscale.kernel.attempts import ATTEMPT_LIMIT, backoff
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.failures import EffectFailed

LONGEST_WAIT: Final = 6
"""The pause between two attempts grows no more after so many: 32 s."""


def change_rules(vm: Vm, command: RuleCommand) -> Sequence[VmEvent]:
    """The events that follow; none where things are as they were asked to be. Raises `Refused`."""
    require_wanted(vm)
    match command:
        case AttachGroup():
            return _attached(vm, command)
        case DetachGroup():
            left = [group for group in vm.rules.groups if group.group_id != command.group_id]
            borne = len(left) < len(vm.rules.groups)
            return (events.GroupsSet(left, command.keep_established),) if borne else ()
        case AddForward():
            return _forwarded(vm, command.forward)
        case RemoveForward():
            return (events.ForwardRemoved(_named(vm, command).id, command.keep_established),)


def require_wanted(vm: Vm) -> None:
    """Raises `Refused` (conflict) for a VM that is being deleted: what was made of it may be gone already, and nothing
    calls a deletion off.
    """
    if vm.requested == "deleted":
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} is being deleted", remedy=Task("vm", "show", vm.id))


def failed_to_apply(vm: Vm, failed: EffectFailed, at_us: int) -> Sequence[VmEvent]:
    """The kernel has the rules of before, and the VM goes on with them: those that it should have are never given up.

    That the host will never have it otherwise is not for this step to believe: what is refused for one group is allowed
    once that has changed.
    """
    return never_given_up(vm, "applying-rules", vm.rules.attempt.number, failed, at_us)


def never_given_up(
    vm: Vm, step: Literal["applying-rules", "removing-script"], number: int, failed: EffectFailed, at_us: int
) -> Sequence[VmEvent]:
    """The attempt with this number has failed, and there will be another one, however many there were."""
    return (
        events.VmStepFailed(
            step=step,
            run=vm.run.number,
            attempt=number,
            reason=failed.reason,
            hint=failed.hint,
            log_tail=failed.log_tail,
            retry_at=backoff(at_us, min(number, LONGEST_WAIT)),
        ),
    )


def are_applied(vm: Vm, *, stands: bool) -> bool:
    """Whether the kernel has a VM's groups and forwards; raises `Refused` where they do not come to it. `stands` says
    whether the change that is waited for was not taken back by another.
    """
    if vm.requested == "deleted":
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} was deleted before its groups and forwards were applied")
    why = Task("why", "vm", vm.name)
    if not stands:
        raise Refused(
            Reason.CONFLICT,
            f"another request took this back before the kernel had it for the VM {vm.name!r}",
            remedy=why,
            details={"vm-id": vm.id},
        )
    if not vm.rules.is_applied and vm.rules.failure is not None and vm.rules.attempt.number > ATTEMPT_LIMIT:
        failure = vm.rules.failure
        what = f"the groups and forwards of the VM {vm.name!r} could not be applied, so those of before hold"
        raise failure.refused(f"{what}; it is tried again: {failure.reason}", instead=why, vm_id=vm.id)
    return vm.rules.is_applied


def bears(vm: Vm, options: GroupOfVmOptions) -> bool:
    """Whether a VM is to bear a group, which is named or referred to by its id."""
    return any(options.group in (group.group, group.group_id) for group in vm.rules.groups)


def has_forward(vm: Vm, options: AddForwardOptions | RemoveForwardOptions) -> bool:
    """Whether a port of the host is to lead to a VM, or the forward that is meant by its id."""
    if isinstance(options, RemoveForwardOptions) and options.forward is not None:
        return any(each.id == options.forward for each in vm.rules.forwards)
    port = (options.host_port, options.protocol)
    return any((each.host_port, each.protocol) == port for each in vm.rules.forwards)


def _attached(vm: Vm, command: AttachGroup) -> Sequence[VmEvent]:
    if not vm.ports.made:
        raise Refused(
            Reason.CONFLICT,
            f"the VM {vm.name!r} is in no network, so that no group can let anything to it",
            field="vm-id",
            remedy="create a VM in a network",
        )
    if any(group.group_id == command.group.group_id for group in vm.rules.groups):
        return ()
    if len(vm.rules.groups) >= MAX_GROUPS:
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} bears {MAX_GROUPS} groups, and no VM more", field="group")
    return (events.GroupsSet([*vm.rules.groups, command.group], command.keep_established),)


def _forwarded(vm: Vm, forward: Forward) -> Sequence[VmEvent]:
    number = f"{forward.host_port}/{forward.protocol}"
    for other in vm.rules.forwards:
        if replace(other, id=forward.id) == forward:
            return ()
        if (other.host_port, other.protocol) == (forward.host_port, forward.protocol):
            raise Refused(
                Reason.CONFLICT,
                f"the port {number} of the host leads to the VM {vm.name!r} already, to its port {other.guest_port}"
                + (f", at {other.address}" if other.address else ""),
                field="host-port",
                remedy="take another port of the host, or remove that forward",
                details={"vm-id": vm.id, "forward": other.id},
            )
    if len(vm.rules.forwards) >= MAX_FORWARDS:
        raise Refused(
            Reason.CONFLICT, f"the VM {vm.name!r} has {MAX_FORWARDS} forwards, and no VM more", field="host-port"
        )
    return (events.ForwardAdded(forward),)


def _named(vm: Vm, command: RemoveForward) -> Forward:
    """The forward that is meant. Raises `Refused` (not found)."""
    for forward in vm.rules.forwards:
        port = (forward.host_port, forward.protocol) == (command.host_port, command.protocol)
        if forward.id == command.forward_id or (command.forward_id is None and port):
            return forward
    by_port = f"of the port {command.host_port}/{command.protocol} of the host"
    which = by_port if command.forward_id is None else repr(command.forward_id)
    field = "host-port" if command.forward_id is None else "forward"
    raise Refused(
        Reason.NOT_FOUND,
        f"the VM {vm.name!r} has no forward {which}",
        field=field,
        remedy=Task("forward", "list", vm.name),
    )
