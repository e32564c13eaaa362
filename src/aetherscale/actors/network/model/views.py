"""A network as callers see it, and what others are told of its packets."""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec import Struct

from aetherscale.actors.network.model.effects import NetworkKind
from aetherscale.kernel.failures import Failure

Way = Literal["bridge", "out", "in", "led", "host", "host-led"]
"""How a packet gets from one end to the other: within a bridge; out of a network by the host, or into one; led by a
forward of the host, back into the network that it is from; from the host itself into one, directly or by a forward.
"""
FrameProtocol = Literal["tcp", "udp", "icmp", "other"]
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


class Frame(Struct, frozen=True):
    """Who sends what to whom."""

    source: str
    """The IP address that it says it is from, else the MAC; "" where it has neither."""
    target: str
    """The IP address that it is sent to, else the MAC."""
    packet: str
    """What it is: `tcp/80`, `icmp/echo-request`, `icmp/135`, `protocol 47`, `arp`, `ethertype 0x88cc`."""
    protocol: FrameProtocol = "other"
    """Its protocol, where the rules of groups have a word for it."""
    port: int | None = None
    """The port that it is sent to, of TCP and UDP."""
    icmp: str | None = None
    """The type of an ICMP message, where the rules of groups have a word for it."""


class Dropped(Struct, frozen=True):
    """A packet of a port that was just dropped. A fact of the moment: no event has it."""

    at_us: int
    """When it was told."""
    vm_id: str
    """The VM that the port is of."""
    other_id: str
    """The VM of the same network that is the other end; "" for none."""
    network_id: str
    """The network that the port is in."""
    tap: str
    """The port's device on the host."""
    kind: str
    """Why: `ipv4`, `uninvited` …, as the kinds of `dropped`; or `unreachable`, sent to the host or by way of it."""
    is_inward: bool
    """Whether it was sent to the port; else the port has sent it."""
    is_to_host: bool
    """Whether it was sent to the host itself."""
    frame: Frame
    """What it is."""


class Obstacle(Struct, frozen=True, rename="kebab"):
    """Why the host drops packets that our rules let pass: a filter of another program, or a setting."""

    families: tuple[int, ...]
    """Of which versions of IP."""
    ways: tuple[Way, ...]
    """On which ways."""
    what: str
    """What it is, and what it drops."""
    remedy: str
    """What lets ours pass."""


class Traffic(NamedTuple):
    """What went through a port since its device was made, as its guest sees it."""

    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int
