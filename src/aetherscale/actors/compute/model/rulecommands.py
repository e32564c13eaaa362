"""What callers may say of a VM's groups and forwards: the options of tasks, and the commands they become.

They are facts of the VM, in its stream. Callers ask for them under the name of the component `firewall`.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from aetherscale.actors.compute.model.effects import BorneGroup, Forward
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.kernel.names import Reference
from aetherscale.kernel.wire import Message

GROUP: Final = "group"
"""The kind of a group's stream, which the component `firewall` has."""
MAX_FORWARDS: Final = 64
"""Ports of the host that can lead to one VM in a network."""
LAST_PORT: Final = 65535

Port = Annotated[int, Meta(ge=1, le=LAST_PORT, description=f"a port from 1 to {LAST_PORT}")]
Transport = Literal["tcp", "udp"]


class GroupOfVmOptions(Message, frozen=True):
    """Options of `attach-group` and `detach-group`. What is so already is left as it is.

    The reply comes when the kernel has the change: with a VM that is being created, started or stopped, after that.
    """

    group: Reference
    """The group."""
    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    keep_established: bool = False
    """Whether flows go on that its groups no longer allow; otherwise they end."""


class AddForwardOptions(Message, frozen=True):
    """Options of `add-forward`: let a port of the host lead to a port of a VM in a network of the kind `nat`.

    It opens nothing: what it leads to is let in by a group of the VM, or it is not (`list-forwards` says which). The
    reply comes as that of `attach-group`.
    """

    host_port: Port
    """The port of the host. No two VMs of a node have one port of the host, whatever the addresses."""
    guest_port: Port
    """The port of the guest that it leads to."""
    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    protocol: Transport = "tcp"
    """The protocol."""
    host_address: Annotated[str, Meta(max_length=64)] = ""
    """The address of the host that it is about, IPv4 or IPv6; "" for all of them, of both families."""


class RemoveForwardOptions(Message, frozen=True):
    """Options of `remove-forward`: by the forward's id, or by the port of the host and the protocol."""

    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    forward: Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z", description="the id of a forward")] | None = None
    """The id of the forward; null where `host-port` names it."""
    host_port: Port | None = None
    """The port of the host; null where `forward` names it."""
    protocol: Transport = "tcp"
    """The protocol, beside `host-port`."""
    keep_established: bool = False
    """Whether flows go on that it has led; otherwise they end."""


class ListForwardsOptions(Message, frozen=True):
    """Options of `list-forwards`: an item for each forward, by the port of the host.

    An item has `vm-id`, the VM's `name`, the `forward`, whether a rule of the VM's groups lets any of it in (`let-in`),
    the prefixes that it is let in from (`from`; none for anywhere), and a `rule` that would let in all of it.
    """

    vm_id: Reference = ""
    """Only the forwards of this VM; "" for those of all VMs."""


class AttachGroup(Struct, frozen=True):
    """Let the VM bear a group."""

    vm_id: str
    group: BorneGroup
    keep_established: bool = False


class DetachGroup(Struct, frozen=True):
    """Let the VM bear a group no more."""

    vm_id: str
    group_id: str
    keep_established: bool = False


class AddForward(Struct, frozen=True):
    """Let a port of the host lead to the VM."""

    vm_id: str
    forward: Forward


class RemoveForward(Struct, frozen=True):
    """Let a port of the host lead to the VM no more. `forward_id` names it, or else `host_port` and `protocol`."""

    vm_id: str
    forward_id: str | None
    host_port: int | None
    protocol: Transport
    keep_established: bool = False


def lets_in(rule: Rule, forward: Forward, versions: Container[int]) -> bool:
    """Whether a rule of a group lets anything in of a forward that leads somewhere in these versions of IP.

    Who comes by a forward is no member of a group.
    """
    if rule.direction != "in" or rule.protocol not in ("any", forward.protocol) or rule.group_id is not None:
        return False
    spans = (span.partition("-") for span in rule.ports)
    of_ports = not rule.ports or any(int(low) <= forward.guest_port <= int(high or low) for low, _, high in spans)
    return of_ports and any(version in versions for version in versions_of(rule.cidr or ""))


def versions_of(address: str) -> tuple[int, ...]:
    """The versions of IP of an address or a prefix; both where it is ""."""
    return (4, 6) if not address else (6,) if ":" in address else (4,)


RuleCommand = AttachGroup | DetachGroup | AddForward | RemoveForward
