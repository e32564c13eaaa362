"""What has happened to a VM's groups and forwards, and to its ports while it is there: a part of `events`."""

from __future__ import annotations

from typing import ClassVar

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.compute.model.effects import BorneGroup, Forward
from aetherscale.kernel.messages import Event


class GroupsSet(Event, frozen=True):
    """A caller gave the VM a group, or took one away. With each `GroupsSet`, `ForwardAdded` and `ForwardRemoved` the
    revision of the VM's rules is one higher; it is 0 when the VM is requested.
    """

    groups: list[BorneGroup]
    """All groups that the VM bears from now on, in the order in which it was given them."""
    keep_established: bool = False
    """Whether flows go on that its groups no longer allow."""


class ForwardAdded(Event, frozen=True):
    """A caller requested that a port of the host lead to the VM."""

    forward: Forward
    """The port of the host, and where it leads."""


class ForwardRemoved(Event, frozen=True):
    """A caller requested that a port of the host no longer lead to the VM."""

    SCHEMA: ClassVar[int] = 2
    ONLY_ADDED: ClassVar[bool] = True

    forward_id: str
    """The id of the forward, as in `ForwardAdded`."""
    keep_established: bool = False
    """Whether flows go on that it has led. Not in schema 1, whose removals ended them."""


class RulesApplied(Event, frozen=True):
    """The kernel has the groups and the forwards of the VM."""

    revision: int
    """The revision of the VM's rules that it has, as counted in `GroupsSet`."""


class PortAdded(Event, frozen=True):
    """A caller attached the VM to a network."""

    port: PortSpec
    """The port that it has from now on, with the addresses that it has for as long."""


class PortPlugged(Event, frozen=True):
    """The guest was given the card of a port while it runs. The cards of its boot have no such event."""

    port_id: str
    """The id of the port, which is the name of its tap."""
    run: int
    """The number of the run, as in `VmBooted`."""


class PortRemoved(Event, frozen=True):
    """The VM is to have a port no more."""

    port_id: str
    """The id of the port, which is the name of its tap."""
    failed: bool = False
    """Whether that is because the host could not plug it in; otherwise a caller detached it."""


class PortUnplugged(Event, frozen=True):
    """Nothing of a port is left on the host, and its addresses are free."""

    port_id: str
    """The id of the port, which is the name of its tap."""
    card_left: bool
    """Whether the guest had not let go of the card when it lost its cable; its slot is taken until the run ends."""


RuleEvent = GroupsSet | ForwardAdded | ForwardRemoved | RulesApplied
PortEvent = PortAdded | PortPlugged | PortRemoved | PortUnplugged
