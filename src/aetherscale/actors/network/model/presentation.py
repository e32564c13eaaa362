"""How a network looks from outside, what it holds, and when a task has come to its end. Pure."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Final

from aetherscale.actors.network.model import events
from aetherscale.actors.network.model.addresses import resolver_of, router_of
from aetherscale.actors.network.model.decide import evolve
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.model.effects import OF_HOST
from aetherscale.actors.network.model.events import NetworkEvent
from aetherscale.actors.network.model.sentences import NETWORK_DESCRIPTIONS
from aetherscale.actors.network.model.state import Network
from aetherscale.actors.network.model.views import NetworkView
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.registry import Kind
from aetherscale.kernel.replies import Chunk, status
from aetherscale.kernel.reservations import Holding, Name, NodeKey
from aetherscale.kernel.times import to_rfc3339

PREFIX: Final = "prefix"
"""The kind of the keys that a network's prefixes are reserved by."""
BRIDGE: Final = "bridge"
"""The kind of the key that a bridge of the host is reserved by: it is one network."""
BLOCK_BITS: Final = 24
"""Of an IPv4 prefix. A smaller one has the whole block to itself, a larger one has several."""


def view(network: Network, node: str, revision: int, requested_by: str | None = None) -> NetworkView:
    """The view of a network on `node`; `revision` is the version of its stream."""
    spec = network.spec
    prefixes = [ip_network(prefix) for prefix in (spec.ipv4, spec.ipv6) if prefix]
    return NetworkView(
        id=network.id,
        name=network.name,
        node=node,
        phase="failed" if network.is_failed else network.phase,
        since=to_rfc3339(network.phase_since_us),
        kind=spec.kind,
        ipv4=spec.ipv4,
        ipv6=spec.ipv6,
        bridge=spec.bridge,
        device=spec.bridge or bridge_name(network.id),
        router=[str(router_of(prefix)) for prefix in prefixes] if spec.kind == "nat" else [],
        resolver=[str(resolver_of(prefix)) for prefix in prefixes] if spec.kind not in OF_HOST else [],
        down=network.down,
        failure=network.failure,
        revision=revision,
        requested_by=requested_by,
    )


def holds(network: Network) -> Sequence[Holding]:
    """What a network holds until it is deleted: its name, its prefixes and its bridge, which are no other network's."""
    if network.phase == "deleted":
        return ()
    prefixes = (prefix for prefix in (network.spec.ipv4, network.spec.ipv6) if prefix)
    keys = (NodeKey(PREFIX, block) for prefix in prefixes for block in blocks(prefix))
    held: tuple[Holding, ...] = (Name(events.KIND, network.name), *keys)
    return (*held, NodeKey(BRIDGE, network.spec.bridge)) if network.spec.bridge else held


def blocks(prefix: str) -> Sequence[str]:
    """The blocks that a prefix lies in or is made of: two prefixes that overlap have one in common."""
    network = ip_network(prefix)
    if network.version == 6 or network.prefixlen == BLOCK_BITS:
        return (str(network),)
    if network.prefixlen > BLOCK_BITS:
        return (str(network.supernet(new_prefix=BLOCK_BITS)),)
    return tuple(str(block) for block in network.subnets(new_prefix=BLOCK_BITS))


def announce(network: Network, event: NetworkEvent) -> Chunk | None:
    """The status that a waiting caller is told of an event, if any."""
    match event:
        case events.NetworkRequested():
            return status("creating", network_id=network.id, name=network.name)
        case events.NetworkStepFailed() if event.retry_at is not None:
            return status("retrying", network_id=network.id, reason=event.reason, not_before=event.retry_at)
        case events.NetworkUndone():
            return status("undoing", network_id=network.id)
        case events.NetworkDeleteRequested():
            return status("deleting", network_id=network.id)
        case _:
            return None


def is_made(network: Network, _: object = None) -> bool:
    """Whether a creation has come to its end; raises `Refused` where it is a bad one."""
    if network.rolled_back or network.is_failed:
        if network.phase == "deleted" or network.is_failed:
            raise _failed(network, "the network could not be created")
        return False
    if network.phase in ("deleting", "deleted"):
        raise Refused(Reason.CONFLICT, f"the network {network.name!r} was deleted before it was ready")
    return network.phase in ("ready", "restoring")


def is_deleted(network: Network, _: object = None) -> bool:
    """Whether a deletion has come to its end; raises `Refused` where it is a bad one."""
    if network.is_failed:
        raise _failed(network, f"the network {network.name!r} could not be deleted")
    return network.phase == "deleted"


def _failed(network: Network, what: str) -> Refused:
    failure = network.failure
    assert failure is not None
    return failure.refused(f"{what}: {failure.reason}", network_id=network.id)


NETWORK_KIND: Final[Kind[Network]] = Kind(
    events.KIND, Network, typing.get_args(NetworkEvent), evolve, view, NETWORK_DESCRIPTIONS, keys=(PREFIX, BRIDGE)
)
