"""What callers may say to the network component: options as they are on the wire, and the commands they become."""

from __future__ import annotations

from msgspec import Struct

from aetherscale.actors.network.model.effects import NetworkKind, NetworkSpec
from aetherscale.kernel.names import Name, Reference
from aetherscale.kernel.reservations import User
from aetherscale.kernel.wire import Message


class CreateNetworkOptions(Message, frozen=True):
    """Options of `create-network`."""

    name: Name
    """The name of the network."""
    kind: NetworkKind = "isolated"
    """Where it leads: `isolated`, nowhere; `nat`, to the world through the host; `bridged`, where the bridge
    of the host does; `public`, the same, where no machine is trusted: a VM takes only what its groups allow, and sends
    from its own addresses only.
    """
    ipv4_prefix: str | None = None
    """The IPv4 prefix, such as `10.64.0.0/24`, or `none`; null for a free one in a `nat` network, else none.
    """
    ipv6_prefix: str | None = None
    """The IPv6 prefix, a /64; null for one that follows from the network's id."""
    bridge: str | None = None
    """The bridge of the host that a `bridged` or `public` network is; null for the node's `public-bridge` with
    `public`.
    """


class NetworkOptions(Message, frozen=True):
    """Options of `delete-network` and `network-info`."""

    network: Reference = ""
    """The network; "" where the subject names it (`obj`)."""


class ListNetworksOptions(Message, frozen=True):
    """Options of `list-networks`."""

    all: bool = False
    """Whether deleted networks are listed too."""


class CreateNetwork(Struct, frozen=True):
    """Make a network. Its prefixes are decided."""

    network_id: str
    spec: NetworkSpec


class DeleteNetwork(Struct, frozen=True):
    """Remove a network, in which these have ports."""

    network_id: str
    used_by: tuple[User, ...] = ()


class NetworkLost(Struct, frozen=True):
    """An observation: a part of the network is not on the host as it was made."""

    network_id: str
    what: str
    by: str = ""


NetworkCommand = CreateNetwork | DeleteNetwork | NetworkLost
