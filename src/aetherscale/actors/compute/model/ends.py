"""By the event that a command for a VM begins with, whether the command has come to its end. For who has the log alone.

What a command asked for is in its event, so the options that it came with are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.portcommands import AttachVmOptions
from aetherscale.actors.compute.model.portdecisions import is_attached
from aetherscale.actors.compute.model.presentation import is_deleted, is_stopped, is_up
from aetherscale.actors.compute.model.ruledecisions import are_applied
from aetherscale.actors.compute.model.ruleevents import (
    ForwardAdded,
    ForwardRemoved,
    GroupsSet,
    PortAdded,
    PortRemoved,
)
from aetherscale.actors.compute.model.state import Vm
from aetherscale.kernel.messages import Event


def _groups(vm: Vm, begun: GroupsSet) -> bool:
    # Which of the groups the command was about the event does not say; a later one may have changed others.
    return are_applied(vm, stands=True)


def _forward(vm: Vm, begun: ForwardAdded) -> bool:
    return are_applied(vm, stands=any(each.id == begun.forward.id for each in vm.rules.forwards))


def _no_forward(vm: Vm, begun: ForwardRemoved) -> bool:
    return are_applied(vm, stands=all(each.id != begun.forward_id for each in vm.rules.forwards))


def _attached(vm: Vm, begun: PortAdded) -> bool:
    return is_attached(vm, AttachVmOptions(begun.port.network_id))


def _detached(vm: Vm, begun: PortRemoved) -> bool:
    return vm.phase == "deleted" or all(port.id != begun.port_id for port in vm.ports.every)


ENDS: Final[Mapping[type[Event], Callable[[Vm, Any], bool]]] = {
    events.VmRequested: is_up,
    events.VmStartRequested: is_up,
    events.VmRestartRequested: is_up,
    events.VmStopRequested: is_stopped,
    events.VmDeleteRequested: is_deleted,
    GroupsSet: _groups,
    ForwardAdded: _forward,
    ForwardRemoved: _no_forward,
    PortAdded: _attached,
    PortRemoved: _detached,
}
