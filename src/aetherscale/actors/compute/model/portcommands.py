"""What callers may say of a VM's ports while it is there: the options of tasks, and the commands they become."""

from __future__ import annotations

from msgspec import Struct, field

from aetherscale.actors.compute.model.commands import AllowedAddresses, PortSpec
from aetherscale.kernel.names import Reference
from aetherscale.kernel.wire import Message


class AttachVmOptions(Message, frozen=True):
    """Options of `attach-vm`: give a VM a port in one more network. One that it is in already is left as it is.

    The reply comes when the guest has the card: with a VM that is being created, started or stopped, after that; with
    one at rest at once, since its next boot has it.
    """

    network: Reference
    """The network."""
    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    allow_addresses: AllowedAddresses = field(default_factory=list)
    """Addresses and prefixes that the VM may send from besides its own, in this port."""


class DetachVmOptions(Message, frozen=True):
    """Options of `detach-vm`: take a VM's port in a network away. One that it is not in is left as it is.

    The reply comes when nothing of the port is left on the host, and its addresses are free. A guest that does not let
    go of the card within 10 s has it without a cable, and the slot of it is free again once the VM is restarted.
    """

    network: Reference
    """The network."""
    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""


class AttachPort(Struct, frozen=True):
    """Let the VM have this port."""

    vm_id: str
    port: PortSpec


class DetachPort(Struct, frozen=True):
    """Let the VM have no port in this network."""

    vm_id: str
    network_id: str


PortCommand = AttachPort | DetachPort
