"""The network that is the public bridge of the node: made on the way for the first VM in it, whose tenant has it."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.network.model import events as networks
from aetherscale.actors.network.model.views import NetworkView
from aetherscale.actors.network.ports import BRIDGE, HOST_NETWORKS, PUBLIC, HostNetworks
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.reservations import NO_TENANT
from aetherscale.runtime.component import World

FIELD: Final = "public-ip"
_MAKING: Final = Task("network", "create", PUBLIC, {"kind": "public"})


def public_network(world: World, tenant: str) -> NetworkView:
    """The network that a VM with a public address has a port in. Raises `Refused` (not found, conflict)."""
    host: HostNetworks = world.port(HOST_NETWORKS)
    host.require("public")
    bridge = host.public_bridge()
    holder = world.named(BRIDGE, NO_TENANT, bridge)
    if holder is None:
        if world.named(networks.KIND, tenant, PUBLIC) is not None:
            raise Refused(
                Reason.CONFLICT,
                f"the network {PUBLIC!r} is not the bridge {bridge}, which public addresses are on",
                field=FIELD,
                remedy=("make one that is: ", Task("network", "create", f"{PUBLIC}-{bridge}", {"kind": "public"})),
            )
        raise Refused(
            Reason.NOT_FOUND,
            f"the bridge {bridge}, which public addresses are on, is no network yet",
            field=FIELD,
            remedy=_MAKING,
            made_by=_MAKING,
            made_for_all=True,
        )
    if holder.tenant != tenant:
        raise Refused(Reason.CONFLICT, f"the bridge {bridge} is a network of another tenant", field=FIELD)
    network: NetworkView = world.view(networks.KIND, tenant, holder.id)
    if network.kind != "public":
        raise Refused(
            Reason.CONFLICT,
            f"the bridge {bridge} is the network {network.name!r} already, in which VMs take anything",
            field=FIELD,
            remedy=("name that network instead, or: ", Task("network", "delete", network.name)),
        )
    if network.phase not in ("ready", "restoring"):
        raise Refused(
            Reason.CONFLICT,
            f"the network {network.name!r} is not ready but {network.phase}",
            field=FIELD,
            retryable=network.phase == "creating",
            remedy=Task("network", "show", network.name),
            made_by=Task("network", "create", network.name) if network.phase == "creating" else None,
            made_for_all=True,
        )
    return network
