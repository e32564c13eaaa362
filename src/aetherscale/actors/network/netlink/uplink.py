"""Moves what a device of the host holds, addresses and routes, to a bridge that the device becomes a port of; and back.

The order leaves no moment in which the host is without a way out. The bridge has the addresses before the device
becomes its port, which is one request: from then on frames arrive by the bridge, while those that leave by the device
still do. Then come the routes by the bridge, in front of those by the device, which go last, and its addresses
with them. The MAC is the same, so no neighbor has to learn anything.

Each step ends in the same world when it is done again, from wherever it was left. Every method raises `Failed`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale.actors.network.model.devices import Link
from aetherscale.actors.network.netlink import encoding, holdings
from aetherscale.actors.network.netlink.direct import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Direct, Failed
from aetherscale.actors.network.netlink.encoding import RTM_GETADDR, RTM_GETLINK, RTM_NEWLINK
from aetherscale.actors.network.netlink.holdings import Holdings
from aetherscale.actors.network.netlink.messages import HEADER, link_of

ALIAS: Final = "aetherscale public bridge"
"""The alias of a bridge that was made here. It is no node's."""

_RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR = 17, 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_ETHERNET: Final = 1
_IFF_LOOPBACK: Final = 0x8
_IFF_RUNNING: Final = 0x40
_FAMILIES: Final = (2, 10)
_SETTINGS: Final = Path("/proc/sys/net")
_NOT_COPIED: Final = frozenset({"stable_secret", "mc_forwarding", "mtu", "tag"})


class Device(Struct, frozen=True):
    """A device of the host, and what it takes to become a port of a bridge."""

    link: Link
    is_loopback: bool
    is_ethernet: bool
    has_carrier: bool


class Uplink(Struct, frozen=True):
    """A device whose place a bridge takes, as it was before, and what the bridge is to hold."""

    device: str
    index: int
    """Of the device, for as long as the host runs."""
    mac: str
    mtu: int
    bridge: str
    before: Holdings
    """What the device held."""
    wanted: Holdings
    """What the bridge is to hold: mostly the same."""


class Uplinks:
    """A socket of the network namespace of the thread that makes it. One thread at a time uses it."""

    def __init__(self, settings: Path = _SETTINGS) -> None:
        self._direct = Direct()
        self._settings = settings

    def close(self) -> None:
        """Close it. Devices stay as they are."""
        self._direct.close()

    def device(self, name: str) -> Device | None:
        """A device as it is now; None for none."""
        return self._device(encoding.link(attributes=encoding.name(name) + encoding.without_statistics()))

    def device_at(self, index: int) -> Device | None:
        """The same by its index."""
        return self._device(encoding.link(index, encoding.without_statistics()))

    def ports(self, bridge: int) -> list[str]:
        """The names of the ports of a bridge."""
        found = filter(None, map(link_of, self._direct.dump(RTM_GETLINK, encoding.link())))
        return sorted(link.name for link in found if link.master == bridge)

    def holdings(self, index: int) -> Holdings:
        """What a device holds now."""
        addresses: list[str] = []
        routes: list[str] = []
        for family in _FAMILIES:
            body = bytes([family]) + bytes(7)
            found = [holdings.address_body(each, index) for each in self._direct.dump(RTM_GETADDR, body)]
            addresses += filter(None, found)
            body = bytes([family]) + bytes(11)
            found = [holdings.route_body(each, index) for each in self._direct.dump(_RTM_GETROUTE, body)]
            routes += filter(None, found)
        return Holdings(tuple(addresses), tuple(routes))

    def take_over(self, uplink: Uplink) -> None:
        """Let the bridge take the place of the device."""
        device = self._required(uplink.device)
        bridge = self._bridge(uplink)
        self._copy_settings(uplink.device, uplink.bridge)
        self._set_link(bridge.index, up=True)
        self._give_addresses(uplink.wanted.addresses, bridge.index, (uplink.device, uplink.bridge))
        if device.link.master != bridge.index:
            self._set_link(device.link.index, encoding.master(bridge.index))
        self._set_link(device.link.index, up=True)
        self._give_routes(uplink.wanted.routes, bridge.index)
        self._strip(device.link.index, Holdings())

    def give_back(self, uplink: Uplink) -> None:
        """Let the device be what it was before, whatever is there of the bridge; and the bridge is gone."""
        device = self.device_at(uplink.index) or self._required(uplink.device)
        if device.link.name != uplink.device:
            self._set_link(device.link.index, up=False)
            self._set_link(device.link.index, encoding.name(uplink.device))
        bridge = self.device(uplink.bridge)
        ours = bridge.link if bridge is not None and bridge.link.alias_text == ALIAS else None
        index = device.link.index
        wanted = _lasting(uplink.before, self.holdings(ours.index) if ours is not None else Holdings())
        self._set_link(index, encoding.mtu(uplink.mtu), up=True)
        self._give_addresses(wanted.addresses, index, (uplink.device, uplink.device))
        if device.link.master:
            self._set_link(index, encoding.master(0))
        if ours is not None:
            # In front of those by the bridge, which go with it.
            with suppress(Failed):
                self._give_routes(wanted.routes, index)
            self._remove_link(ours.index)
        elif bridge is not None and _is_half_made(bridge.link, uplink):
            self._remove_link(bridge.link.index)
        self._give_routes(wanted.routes, index)
        self._strip(index, wanted)

    def missing(self, uplink: Uplink) -> list[str]:
        """What is not as `take_over` makes it, in words; empty where all is."""
        device, bridge = self.device(uplink.device), self.device(uplink.bridge)
        if device is None or bridge is None:
            return [uplink.device if device is None else uplink.bridge]
        checks = {
            f"{uplink.device} is a port of {uplink.bridge}": device.link.master == bridge.link.index,
            f"{uplink.bridge} is up": bridge.link.is_up,
            f"the MTU {uplink.mtu}": bridge.link.mtu == uplink.mtu,
            f"the MAC {uplink.mac}": bridge.link.mac == uplink.mac,
        }
        lacking = [what for what, is_so in checks.items() if not is_so]
        held = holdings.facts(self.holdings(bridge.link.index))
        return lacking + sorted(holdings.facts(uplink.wanted) - held)

    def _device(self, question: bytes) -> Device | None:
        try:
            found = self._direct.ask(RTM_GETLINK, 0, question)
        except Failed as failed:
            if failed.code == errno.ENODEV:
                return None
            raise
        for message in found:
            if (link := link_of(message)) is not None:
                kind = int.from_bytes(message[HEADER.size + 2 : HEADER.size + 4], "little")
                flags = int.from_bytes(message[HEADER.size + 8 : HEADER.size + 12], "little")
                return Device(link, bool(flags & _IFF_LOOPBACK), kind == _ETHERNET, bool(flags & _IFF_RUNNING))
        return None

    def _required(self, name: str) -> Device:
        found = self.device(name)
        if found is None:
            raise Failed(errno.ENODEV, f"there is no device {name}")
        return found

    def _bridge(self, uplink: Uplink) -> Link:
        """The bridge, made where it is not there. It has an alias last of all."""
        if (found := self.device(uplink.bridge)) is None:
            attributes = encoding.name(uplink.bridge) + encoding.address(uplink.mac) + encoding.mtu(uplink.mtu)
            self._direct.ask(
                RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, encoding.link(attributes=attributes + encoding.bridge())
            )
            found = self._required(uplink.bridge)
        elif found.link.alias_text != ALIAS and not _is_half_made(found.link, uplink):
            raise Failed(errno.EEXIST, f"there is another {uplink.bridge}")
        # An MTU, and a MAC, that were set stay as they are, whatever ports the bridge has.
        wanted = encoding.address(uplink.mac) + encoding.mtu(uplink.mtu) + encoding.alias(ALIAS)
        self._set_link(found.link.index, wanted)
        return found.link

    def _copy_settings(self, device: str, bridge: str) -> None:
        """What the host does on the device it does on the bridge: rp_filter, accept_ra, forwarding and the like."""
        for family in ("ipv4", "ipv6"):
            for source in sorted((self._settings / family / "conf" / device).glob("*")):
                target = self._settings / family / "conf" / bridge / source.name
                with suppress(OSError):
                    if source.name not in _NOT_COPIED and source.read_text() != target.read_text():
                        target.write_text(source.read_text())

    def _give_addresses(self, bodies: Iterable[str], index: int, names: tuple[str, str]) -> None:
        for body in _as_made(bodies):
            self._change(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, holdings.to_add(body, index, names, nodad=True))
            if holdings.is_ipv6(body):
                # Once it is there, without a detection of duplicates, its flags are as they were.
                as_it_was = holdings.to_add(body, index, names, nodad=False)
                self._change(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, as_it_was)

    def _give_routes(self, bodies: Iterable[str], index: int) -> None:
        """A route whose router is reached by another route comes after that one, in whatever order they are told."""
        left = list(bodies)
        while left:
            failed: list[tuple[str, Failed]] = []
            for body in left:
                try:
                    self._change(_RTM_NEWROUTE, NLM_F_CREATE, holdings.to_route(body, index), (errno.EEXIST,))
                except Failed as refused:
                    failed.append((body, refused))
            if len(failed) == len(left):
                body, first = failed[0]
                raise Failed(first.code, f"{first}: the route {holdings.words(body)}") from first
            left = [body for body, _ in failed]

    def _strip(self, index: int, but: Holdings) -> None:
        """Take from a device what it holds, but for that. Routes first: what leaves goes by others at once."""
        held, kept = self.holdings(index), holdings.facts(but)
        for body in (hop for each in held.routes for hop in holdings.own_hops(each, index)):
            if not holdings.facts(Holdings(routes=(body,))) <= kept:
                self._change(_RTM_DELROUTE, 0, holdings.to_route(body, index), (errno.ESRCH, errno.ENOENT))
        # The newest first: with the first address of a prefix of IPv4 the kernel may take those that came after it.
        for body in reversed(_as_made(held.addresses)):
            if not holdings.facts(Holdings(addresses=(body,))) <= kept:
                wanted = holdings.to_add(body, index, ("", ""), nodad=False)
                self._change(_RTM_DELADDR, 0, wanted, (errno.EADDRNOTAVAIL,))

    def _remove_link(self, index: int) -> None:
        self._change(_RTM_DELLINK, 0, encoding.link(index), (errno.ENODEV,))

    def _set_link(self, index: int, attributes: bytes = b"", *, up: bool | None = None) -> None:
        assert index
        self._change(RTM_NEWLINK, 0, encoding.link(index, attributes, up=up))

    def _change(self, kind: int, how: int, body: bytes, passed_over: tuple[int, ...] = ()) -> None:
        try:
            self._direct.ask(kind, how, body)
        except Failed as failed:
            if failed.code not in passed_over:
                raise


def _is_half_made(link: Link, uplink: Uplink) -> bool:
    """Whether its maker was killed before the alias was on it."""
    return link.kind == "bridge" and not link.alias_text and not link.is_up and link.mac == uplink.mac


def _as_made(addresses: Iterable[str]) -> list[str]:
    """Addresses in the order in which they were made: the kernel lists the newest of IPv6 first."""
    every = list(addresses)
    of_ipv6 = [each for each in every if holdings.is_ipv6(each)]
    return [each for each in every if not holdings.is_ipv6(each)] + of_ipv6[::-1]


def _lasting(before: Holdings, now: Holdings) -> Holdings:
    """What a device is to hold again: of what has an end, that which the bridge has by now, where it has any."""
    addresses = {holdings.interface_of(each): each for each in now.addresses if not holdings.is_for_ever(each)}
    routes = [each for each in now.routes if holdings.expires(each)]
    if not (addresses or routes):
        return before
    # Each in its place: the kernel speaks from the one that it lists first.
    known = [
        each if holdings.is_for_ever(each) else addresses.pop(holdings.interface_of(each), "")
        for each in before.addresses
    ]
    return Holdings(
        (*addresses.values(), *filter(None, known)),
        (*(each for each in before.routes if not holdings.expires(each)), *routes),
    )
