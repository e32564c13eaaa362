"""Whether a bridge can take the place of a device, and what it is to hold: looks, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aetherscale.actors.network.netlink import holdings
from aetherscale.actors.network.netlink.holdings import Holdings
from aetherscale.actors.network.netlink.uplink import ALIAS, Device, Uplink, Uplinks
from aetherscale.gateways.cli.program import BridgeAsked
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.setup.bridgemanagers import manager

OURS: Final = "aetherscale "
"""How the alias of each device of ours begins."""
PAGE: Final = "docs/public-bridge.md"


def planned(asked: BridgeAsked, uplinks: Uplinks, root: Path = Path("/")) -> Uplink:
    """The bridge in the place of the device. Raises `Refused` that names the option, `Failed`."""
    _require_addresses(asked)
    device = uplinks.device(asked.device)
    if device is None:
        raise _refused("device", Reason.NOT_FOUND, f"there is no device {asked.device}", "ip -br link")
    _require_device(device, uplinks, root)
    _require_free(asked.bridge, uplinks)
    held = uplinks.holdings(device.link.index)
    _require_keeping(asked, held, device, root)
    return Uplink(
        device=asked.device,
        index=device.link.index,
        mac=device.link.mac,
        mtu=device.link.mtu,
        bridge=asked.bridge,
        before=held,
        wanted=_wanted(asked, held),
    )


def holds(asked: BridgeAsked, uplink: Uplink) -> bool:
    """Whether a bridge is what is asked for."""
    static = holdings.facts(holdings.static(asked.addresses, asked.gateways))
    is_static = static <= holdings.facts(uplink.wanted)
    return asked.device == uplink.device and asked.bridge == uplink.bridge and is_static


def _require_addresses(asked: BridgeAsked) -> None:
    """What was typed makes sense by itself."""
    for address in asked.addresses:
        network = address.network
        is_edge = network.num_addresses > 2 and address.ip in (network.network_address, network.broadcast_address)
        if (
            address.ip.is_loopback
            or address.ip.is_multicast
            or address.ip.is_unspecified
            or (address.version == 4 and is_edge)
        ):
            raise _refused("address", Reason.BAD_REQUEST, f"{address} is no address of a host", "192.0.2.10/24, as one")
    for gateway in asked.gateways:
        of_family = [each for each in asked.addresses if each.version == gateway.version]
        if not of_family:
            raise _refused(
                "gateway",
                Reason.BAD_REQUEST,
                f"the router {gateway} is given, and no address of its family",
                "add --address ADDRESS/LENGTH",
            )
        is_near = gateway.is_link_local or any(gateway in each.network for each in of_family)
        if not is_near or any(gateway == each.ip for each in of_family):
            raise _refused(
                "gateway",
                Reason.BAD_REQUEST,
                f"the router {gateway} is not a neighbor of {', '.join(map(str, of_family))}",
                "give the router of this network, or the length of the prefix with which it is in it",
            )
    for version in (4, 6):
        if sum(each.version == version for each in asked.gateways) > 1:
            raise _refused("gateway", Reason.BAD_REQUEST, f"two routers of IPv{version}", "give one of each family")


def _require_device(device: Device, uplinks: Uplinks, root: Path) -> None:
    link = device.link
    if device.is_loopback:
        raise _refused("device", Reason.CONFLICT, f"{link.name} is the loopback of the host", "ip -br link")
    if link.alias_text.startswith(OURS):
        raise _refused(
            "device", Reason.CONFLICT, f"{link.name} is a device of aetherscale's", "give one that leads out: ip route"
        )
    if link.master:
        master = uplinks.device_at(link.master)
        name = master.link.name if master is not None else f"the device {link.master}"
        raise _refused(
            "device",
            Reason.CONFLICT,
            f"{link.name} is a port of {name} already",
            f"use that bridge: its name is the setting public-bridge; or: ip link set {link.name} nomaster",
        )
    if link.kind == "bridge":
        raise _refused(
            "device",
            Reason.CONFLICT,
            f"{link.name} is a bridge already",
            f'use it: public-bridge = "{link.name}" in the settings',
        )
    if any((root / f"sys/class/net/{link.name}/{each}").exists() for each in ("phy80211", "wireless")):
        raise _refused(
            "device",
            Reason.CONFLICT,
            f"{link.name} is a Wi-Fi device: an access point takes frames of one MAC alone, and guests have their own",
            "use a cable; or a network that leads out through the host: aetherscale network create NAME --kind nat",
        )
    if not device.is_ethernet:
        raise _refused(
            "device", Reason.CONFLICT, f"{link.name} carries no Ethernet, so no bridge can have it", "ip -d link"
        )
    if not (link.is_up and device.has_carrier):
        what = "is down" if not link.is_up else "has no carrier"
        raise _refused(
            "device",
            Reason.CONFLICT,
            f"{link.name} {what}: whether the host is reachable by it could not be told",
            f"plug its cable in, then: ip link set {link.name} up",
        )


def _require_free(name: str, uplinks: Uplinks) -> None:
    there = uplinks.device(name)
    if there is None:
        return
    whose = "is a bridge that was not made by host setup" if there.link.kind == "bridge" else "is another device"
    if there.link.alias_text == ALIAS:
        whose = "is left of a bridge that is recorded nowhere"
    raise _refused(
        "bridge",
        Reason.CONFLICT,
        f"{name} {whose}",
        f"give another name with --bridge; or, if nothing needs it: ip link delete {name}",
    )


def _require_keeping(asked: BridgeAsked, held: Holdings, device: Device, root: Path) -> None:
    """What it holds can be moved, and stays where it is moved."""
    name = device.link.name
    if shared := [body for body in held.routes if holdings.route_of(body).is_shared]:
        raise _refused(
            "device",
            Reason.CONFLICT,
            f"{name} has a route by several devices or by a nexthop object: {holdings.route_of(shared[0]).to}",
            "replace it by a route by one device: ip route; ip -6 route; ip nexthop",
        )
    if found := manager(name, device.link.index, root):
        raise _refused(
            "device",
            Reason.CONFLICT,
            f"{found} manages {name}, and would configure it again",
            f"let it make the bridge itself, or leave {name} alone: {PAGE} has the lines",
        )
    families = {each.version for each in asked.addresses}
    ends = [each for each in map(holdings.interface_of, filter(_ends, held.addresses)) if each.version == 4]
    if ends and 4 not in families:
        raise _refused(
            "address",
            Reason.CONFLICT,
            f"{name} has {ends[0]} for a limited time, and nothing would renew it on a bridge",
            "give it for ever, by a reservation of the DHCP server: --address ADDRESS/LENGTH --gateway ROUTER",
        )
    for version in families - {each.version for each in asked.gateways}:
        if any(_is_default(body, version) for body in held.routes):
            raise _refused(
                "gateway",
                Reason.BAD_REQUEST,
                f"{name} has a default route of IPv{version}, which --address alone would take from the host",
                "add --gateway ROUTER: ip route",
            )


def _wanted(asked: BridgeAsked, held: Holdings) -> Holdings:
    static = holdings.static(asked.addresses, asked.gateways)
    families = {each.version for each in asked.addresses}

    def is_kept(body: str) -> bool:
        return (6 if holdings.is_ipv6(body) else 4) not in families

    def is_link_local(body: str) -> bool:
        return holdings.interface_of(body).ip.is_link_local

    return Holdings(
        (*(each for each in held.addresses if is_kept(each) or is_link_local(each)), *static.addresses),
        (*filter(is_kept, held.routes), *static.routes),
    )


def _ends(body: str) -> bool:
    return not holdings.is_for_ever(body)


def _is_default(body: str, version: int) -> bool:
    return holdings.is_ipv6(body) == (version == 6) and holdings.route_of(body).to == "default"


def _refused(option: str, reason: Reason, what: str, remedy: Sequence[str] | str) -> Refused:
    return Refused(reason, f"host setup bridge: --{option}: {what}", remedy=str(remedy), field=option)
