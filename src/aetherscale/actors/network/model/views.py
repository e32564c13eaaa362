"""A network as callers see it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from aetherscale.actors.network.model.effects import NetworkKind

ShownPhase = Literal["creating", "ready", "restoring", "deleting", "failed", "deleted"]


class NetworkFailureView(Struct, frozen=True, rename="kebab"):
    """Why a network has failed."""

    phase: str
    """The step that failed: `creating`, `restoring` or `deleting`."""
    reason: str
    """The failure, in one sentence."""
    hint: str
    """The remedy, for the user; "" for none."""
    log_tail: str
    """The end of the log that shows it, at most 2,000 characters; "" for none."""


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
    of the host does.
    """
    ipv4: str | None
    """Its IPv4 prefix; null for none."""
    ipv6: str | None
    """Its IPv6 prefix; null for none."""
    bridge: str | None
    """The bridge of the host that a `bridged` network is; null for one of our own."""
    down: str
    """What is wrong while it is restored; "" for nothing."""
    failure: NetworkFailureView | None
    """Why the network has failed, or cannot be restored so far; null where neither is so."""
    revision: int
    """The version of the network's stream, which is the number of its events; it grows with each change."""
    requested_by: str | None
    """The actor whose command was carried out last (see `docs/nats.md`); null where there was none."""
