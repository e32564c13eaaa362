"""A network as callers see it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from aetherscale.actors.network.model.effects import NetworkKind
from aetherscale.kernel.failures import Failure

ShownPhase = Literal["creating", "ready", "restoring", "deleting", "failed", "deleted"]


class NetworkView(Struct, frozen=True, rename="kebab"):
    """The view of a network."""

    id: str
    """The id of the network, 16 hex digits."""
    name: str
    """The name of the network, unique in its tenant until the network is deleted."""
    node: str
    """The name of the node that owns the network."""
    phase: ShownPhase
    """Where the network is in its life: `creating`, it is being made; `ready`, VMs can be in it; `restoring`, a part of
    it was lost and is made again, as `down` says; `deleting`; `failed`, as `failure` says; `deleted`.
    """
    since: str
    """When the network entered its phase, RFC 3339 in UTC."""
    kind: NetworkKind
    """Where it leads: `isolated`, nowhere; `nat`, to the world through the host; `bridged`, where the bridge
    of the host does; `public`, the same, where no machine is trusted.
    """
    ipv4: str | None
    """Its IPv4 prefix; null for none."""
    ipv6: str | None
    """Its IPv6 prefix; null for none."""
    bridge: str | None
    """The bridge of the host that a `bridged` or `public` network is; null for one of our own."""
    device: str
    """The bridge on the host: the host's own, or one of ours, whose name follows from the network's id."""
    router: list[str]
    """The addresses of the router, which is the host; empty where it has none in the network."""
    resolver: list[str]
    """The addresses of the DNS and DHCP server; empty with `bridged` and `public`, where it is not ours."""
    down: str
    """What is wrong while it is restored; "" for nothing."""
    failure: Failure | None
    """Why the network has failed, or cannot be restored so far; null where neither is so."""
    revision: int
    """The version of the network's stream, which is the number of its events; it grows with each change."""
    requested_by: str | None
    """The actor whose command was carried out last (see `docs/nats.md`); null where there was none."""
