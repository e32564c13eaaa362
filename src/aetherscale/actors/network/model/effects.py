"""What the network component may ask of the host, and every answer. Ensure-effects, as in compute. Pure data."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from aetherscale.kernel.failures import EffectFailed

NetworkKind = Literal["isolated", "nat", "bridged", "public"]

OF_HOST: Final = ("bridged", "public")
"""The kinds that are a bridge of the host: its addresses, its router and its resolver are none of ours."""


class NetworkSpec(Struct, frozen=True):
    """What a network is: decided once, and the same for ever."""

    name: str
    """The name of the network, unique in its tenant until the network is deleted."""
    kind: NetworkKind
    """Where it leads: `isolated`, nowhere; `nat`, to the world through the host; `bridged`, where the bridge
    of the host does; `public`, the same, where no machine is trusted.
    """
    ipv4: str | None
    """Its IPv4 prefix, such as `10.64.0.0/24`; null for none."""
    ipv6: str | None
    """Its IPv6 prefix, a /64; null for none, and where the host's bridge has its own."""
    bridge: str | None
    """The bridge of the host that a `bridged` or `public` network is; null for one of our own."""


class EnsureNetwork(Struct, frozen=True):
    """Ensure that the network's bridge, addresses and rules are there, after a restart of the host too."""

    key: str
    network_id: str
    spec: NetworkSpec
    deadline_s: float = 30.0
    not_before_us: int = 0


class RemoveNetwork(Struct, frozen=True):
    """Ensure that nothing of the network is left."""

    key: str
    network_id: str
    spec: NetworkSpec
    deadline_s: float = 30.0
    not_before_us: int = 0


NetworkEffect = EnsureNetwork | RemoveNetwork


class NetworkEnsured(Struct, frozen=True):
    """All of it is there, for as long as the host is up."""

    key: str
    boot_id: str


class NetworkRemoved(Struct, frozen=True):
    """Nothing of it is left."""

    key: str


NetworkOutcome = NetworkEnsured | NetworkRemoved | EffectFailed
