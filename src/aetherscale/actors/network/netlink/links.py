"""The devices of a node on its host: bridges of networks, taps of ports. CAP_NET_ADMIN is all that it takes.

Nothing that lacks the alias of this node is changed or removed, whatever its name, but for a device that the caller
knows by its index: another program may have renamed it, or taken its alias. Every method ends in the same
world when it is called again, or was killed half-way; each raises `Fault` for what the host refuses.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from itertools import count
from typing import TYPE_CHECKING, Final

from aetherscale.actors.network.model import devices
from aetherscale.actors.network.model.addresses import Prefix, mac_of, tap_mac_of
from aetherscale.actors.network.model.devices import Alias, Link
from aetherscale.actors.network.model.views import Traffic
from aetherscale.actors.network.netlink import encoding, settings, sysctls, taps, watching
from aetherscale.actors.network.netlink.direct import Failed
from aetherscale.actors.network.netlink.faults import BRIDGES, fault_of, no_bridge, no_bridge_of_host, not_ours

if TYPE_CHECKING:
    from aetherscale.actors.network.netlink.requests import Requests

_NOTICES_BYTES: Final = 16 << 20
"""How much the kernel keeps of what `watch` has not read. To remove 100 taps takes 3 MiB of it."""


class Links:
    """The devices of one node, in the network namespace that they were opened in."""

    def __init__(self, node: str) -> None:
        self._node = node
        # Here, since a node without networks goes without the library beneath: a sixth of its memory and of its start.
        from aetherscale.actors.network.netlink.requests import Requests

        self._requests: Requests = Requests()
        self._batches = count()
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Open the netlink socket."""
        await self._requests.open()

    async def close(self) -> None:
        """Close it. Devices stay as they are."""
        self._requests.close()

    async def ours(self) -> list[Link]:
        """Every device of this node."""
        return [link for link in await self._with_an_alias() if self._is_ours(link)]

    async def routes(self) -> list[Prefix]:
        """The prefixes that a new network must not overlap, by number: those of all routes but the default ones.
        The addresses of the host are among them.
        """
        with _told("read the routes of the host"):
            found = await self._requests.routes()
        return sorted(found, key=lambda each: (each.version, int(each.network_address), each.prefixlen))

    def traffic(self, taps_wanted: Iterable[str]) -> dict[str, Traffic]:
        """What went through taps since they were made, as their guests see it; without those that are not there."""
        with _told("read the counters of taps"):
            return {tap: went for tap in taps_wanted if (went := self._requests.traffic(tap)) is not None}

    def watch(self, also: watching.Also = watching.nothing) -> AsyncGenerator[watching.Change, None]:
        """What happens to devices of ours, and to these of others, from now on: see `watching.watch`."""
        return watching.watch(self._with_an_alias, _NOTICES_BYTES, also)

    def bridge_of_host(self, name: str) -> int:
        """The index of a bridge of the host's own, which has to be there."""
        link = self.look(name)
        if link is None or link.kind != "bridge":
            raise no_bridge_of_host(name, is_device=link is not None)
        return link.index

    async def ensure_bridge(
        self, name: str, alias: Alias, mtu: int, *, calls_netfilter: bool = False, index: int = 0
    ) -> int:
        """Ensure that there is this bridge, up, in which the host takes no address by itself; its index.

        It does not learn from frames that no rule sees, and leaves multicast to who wants it. `mtu` is in bytes, 1280
        or more. With `calls_netfilter` its packets pass the host's inet hooks (br_netfilter),
        for kernels that cannot track connections in the bridge family. `index` is the one that it is known by, if any.
        """
        operation = f"make the bridge {name}"
        with _told(operation, BRIDGES):
            link = self._renamed_back(name, index) or self._make_bridge(name, mtu)
            if not (link.index == index or self._is(link, alias) or _is_half_made(link)):
                raise not_ours(operation, link)
            values = dict(settings.bridge(calls_netfilter=calls_netfilter))
            if link.settings.get(settings.VLAN_FILTERING) in (None, values[settings.VLAN_FILTERING]):
                del values[settings.VLAN_FILTERING]
            wanted = encoding.address(mac_of(name)) + encoding.mtu(mtu) + encoding.alias(str(alias))
            wanted += encoding.master(0) + encoding.bridge_settings(values)
            self._requests.set_link(link.index, wanted + sysctls.without_addresses(name))
            sysctls.ignore_routers(name)
            self._requests.set_link(link.index, up=True)
            return link.index

    async def remove_bridge(self, name: str, alias: Alias) -> None:
        """Ensure that this bridge is gone. Its ports stay, without a bridge."""
        operation = f"remove the bridge {name}"
        with _told(operation):
            link = self._requests.find(name)
            if link is None:
                return
            if not self._is(link, alias) and not _is_half_made(link):
                raise not_ours(operation, link)
            await self._requests.remove_link(link.index)

    async def set_address(self, bridge: str, address: IPv4Interface | IPv6Interface) -> None:
        """Ensure that a bridge of ours has this address of the host's, beside those that it has."""
        operation = f"give {bridge} the address {address}"
        with _told(operation):
            try:
                await self._requests.add_address(self._bridge_of_ours(operation, bridge).index, address)
            except Failed as failed:
                if failed.code != errno.EEXIST:
                    raise

    async def remove_address(self, bridge: str, address: IPv4Interface | IPv6Interface) -> None:
        """Ensure that a bridge of ours does not have this address."""
        operation = f"take the address {address} from {bridge}"
        with _told(operation):
            link = self._requests.find(bridge)
            if link is None:
                return
            if not self._is_ours(link):
                raise not_ours(operation, link)
            try:
                await self._requests.remove_address(link.index, address)
            except Failed as failed:
                if failed.code != errno.EADDRNOTAVAIL:
                    raise

    async def addresses(self) -> dict[int, set[IPv4Interface | IPv6Interface]]:
        """The addresses of the host, by the index of their device."""
        with _told("list the addresses of the host"):
            return await self._requests.addresses()

    async def keep_addresses(self, bridge: str, wanted: Collection[IPv4Interface | IPv6Interface]) -> None:
        """Ensure that a bridge of ours has these addresses of the host's, and no others."""
        # Others first: with the first address of an IPv4 prefix the kernel takes those that came after it.
        for address in (await self.addresses()).get(taps.index_of(bridge), set()).difference(wanted):
            await self.remove_address(bridge, address)
        for address in wanted:
            await self.set_address(bridge, address)

    async def open_tap(self, name: str, alias: Alias, bridge: str, group: int, *, mac: str | None = None) -> int:
        """Ensure that there is this tap, in the bridge, up, and attach to it: the descriptor that QEMU inherits.

        Its rules have to be in force before. It is set up last of all; one that is there already, from a
        run before, is not out of its bridge meanwhile. It has the MTU of the bridge, which may be one of the host's,
        and is in a link group of ours (`devices.group_of`). The descriptor closes on exec, unless it is passed on, and
        the caller closes it.
        """
        assert devices.is_group(group), group
        operation = f"open the tap {name}"
        with _told(operation):
            before = taps.index_of(name)
            if before:
                link = self._requests.find(name)
                if link is not None and not (self._is(link, alias) and link.kind == "tun"):
                    raise not_ours(operation, link)
                before = link.index if link is not None else 0
            into = taps.index_of(bridge)
            if not into:
                raise no_bridge(operation, bridge)
            wanted = _tap(alias, bridge, group, into, mac)
            if before:
                self._set_up(operation, name, bridge, before, wanted, mac)
            descriptor = taps.attach(name, new=not before)
            try:
                if not (index := taps.index_of(name)):
                    raise Failed(errno.ENODEV, "it was renamed as soon as it was made")
                if index != before:
                    self._set_up(operation, name, bridge, index, wanted, mac)
                taps.keep(descriptor, name)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

    def look(self, name: str) -> Link | None:
        """A device as it is now, whoever's it is; None for none."""
        with _told(f"look at {name}"):
            return self._requests.find(name)

    def look_at(self, index: int) -> Link | None:
        """The same by its index, whatever it is called."""
        with _told(f"look at the device {index}"):
            return self._requests.at(index)

    def is_up(self, name: str) -> bool:
        """Whether a device is there and up: the ports of a bridge that is down forward nothing."""
        return (link := self.look(name)) is not None and link.is_up

    def is_known(self, port: int, mac: str) -> bool:
        """Whether the bridge of a port, which is named by its index, knows for ever that the MAC is behind it."""
        with _told(f"look for {mac}"):
            return self._requests.has_static_entry(port, mac)

    def put_back(self, name: str, alias: Alias, bridge: str, group: int, *, index: int, mac: str | None = None) -> None:
        """Ensure that the tap of this index is as `open_tap` made it, whoever is attached to it."""
        operation = f"put back the tap {name}"
        with _told(operation):
            into = taps.index_of(bridge)
            if not into:
                raise no_bridge(operation, bridge)
            self._renamed_back(name, index)
            self._set_up(operation, name, bridge, index, _tap(alias, bridge, group, into, mac), mac)
            if bridge.startswith(devices.BRIDGE_PREFIX):
                try:
                    self._requests.set_link(index, encoding.port_settings(settings.FORWARDING))
                except Failed as failed:
                    # Nobody is attached; or the bridge speaks the spanning tree protocol, and is mended after this.
                    if failed.code not in (errno.ENETDOWN, errno.EBUSY):
                        raise

    async def remove_taps(self, names: Sequence[str]) -> None:
        """Ensure that these taps are gone, all at once."""
        operation = "remove taps"
        with _told(operation):
            found: list[Link] = []
            for name in names:
                await asyncio.sleep(0)
                if (link := self._requests.find(name)) is not None:
                    if not self._is_ours(link):
                        raise not_ours(operation, link)
                    found.append(link)
            await self._remove(found)

    async def remove_group(self, group: int) -> None:
        """Ensure that no device of ours is in this link group. What others have put there stays."""
        assert devices.is_group(group), group
        with _told("remove taps"):
            inside = [link for link in await self._requests.links() if link.group == group]
            found = [link for link in inside if self._is_ours(link)]
            if len(found) == len(inside):
                await self._requests.remove_group(group)
            else:
                await self._remove(found)

    async def _with_an_alias(self) -> list[Link]:
        with _told("list the network devices"):
            return [link for link in await self._requests.links() if link.alias is not None]

    async def _remove(self, found: Sequence[Link]) -> None:
        """Remove links of ours; more than one by a group that is made for it, since each by itself takes 20 ms."""
        if len(found) <= 1:
            for link in found:
                await self._requests.remove_link(link.index)
            return
        group = devices.batch_group(self._node, next(self._batches))
        for link in found:
            await asyncio.sleep(0)
            try:
                self._requests.set_link(link.index, encoding.group(group))
            except Failed as failed:
                if failed.code != errno.ENODEV:
                    raise
        await self._requests.remove_group(group)

    def _renamed_back(self, name: str, index: int) -> Link | None:
        """The device of this name, or else the one of this index, which gets the name; None for none."""
        link = self._requests.find(name)
        if link is None and index and (link := self._requests.at(index)) is not None:
            self._requests.set_link(index, up=False)
            self._requests.set_link(index, encoding.name(name))
        return link

    def _make_bridge(self, name: str, mtu: int) -> Link:
        """A bridge that is down and has no alias yet, which the kernel does not take with what makes a device.

        It has another MTU than `mtu`: only one that was changed stays as it is, whatever ports the bridge has.
        """
        try:
            self._requests.make_link(
                encoding.name(name) + encoding.address(mac_of(name)) + encoding.mtu(mtu + 1) + encoding.bridge()
            )
        except Failed as failed:
            # Another call, or somebody else, was first: what there is now has to be ours.
            if failed.code != errno.EEXIST:
                raise
        link = self._requests.find(name)
        if link is None:
            raise Failed(errno.ENODEV, "somebody removed it as soon as it was made")
        return link

    def _set_up(self, operation: str, name: str, bridge: str, index: int, wanted: bytes, mac: str | None) -> None:
        # Not in one request: the kernel heeds the state before the master and before IFLA_AF_SPEC. For a moment the tap
        # would be up outside of its bridge, where the host itself listens and speaks to the guest.
        try:
            self._requests.set_link(index, wanted + sysctls.without_addresses(name))
        except Failed as failed:
            into = self._requests.find(bridge)
            if into is None or into.kind != "bridge":
                raise no_bridge(operation, bridge) from failed
            raise
        if mac is not None:
            # Of a port of the bridge, so it has to be one already.
            self._requests.set_link(index, encoding.port_settings(settings.NOTHING_LEARNT))
            self._requests.add_static_entry(index, mac)
        self._requests.set_link(index, up=True)

    def _bridge_of_ours(self, operation: str, name: str) -> Link:
        link = self._requests.find(name)
        if link is None:
            raise no_bridge(operation, name)
        if not self._is_ours(link):
            raise not_ours(operation, link)
        return link

    def _is_ours(self, link: Link) -> bool:
        alias = link.alias
        return alias is not None and alias.node == self._node

    def _is(self, link: Link, alias: Alias) -> bool:
        return link.alias == alias and self._is_ours(link)


def _tap(alias: Alias, bridge: str, group: int, into: int, mac: str | None) -> bytes:
    """What a tap of ours has, before it is up. The kernel sets the MAC first, so that the bridge sees no other."""
    own = encoding.address(tap_mac_of(mac)) if mac is not None else b""
    settings = own + encoding.mtu(taps.mtu_of(bridge)) + encoding.group(group)
    return settings + encoding.alias(str(alias)) + encoding.master(into)


def _is_half_made(link: Link) -> bool:
    """Whether a node was killed after it had made this bridge, and before the alias was on it.

    Only we make one with the MAC address that follows from its name.
    """
    return link.kind == "bridge" and not link.alias_text and not link.is_up and link.mac == mac_of(link.name)


@contextmanager
def _told(operation: str, remedy: str = "") -> Iterator[None]:
    """Tell what the kernel refuses within as a fault; `remedy` is for a kernel that has no devices of this kind."""
    try:
        yield
    except Failed as failed:
        missing = remedy if failed.code == errno.EOPNOTSUPP else ""
        raise fault_of(operation, failed.code, str(failed), missing) from failed
