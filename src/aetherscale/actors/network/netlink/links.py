"""The devices of a node on its host: bridges of networks, taps of ports. CAP_NET_ADMIN is all that it takes.

Nothing that lacks the alias of this node is changed or removed, whatever its name. Every method ends in the same
world when it is called again, or was killed half-way; each raises `Fault` for what the host refuses.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from itertools import count
from pathlib import Path
from typing import Any, Final

from aetherscale.actors.network.model import devices
from aetherscale.actors.network.model.addresses import Prefix, mac_of
from aetherscale.actors.network.model.devices import Alias, Link
from aetherscale.actors.network.netlink import taps, watching
from aetherscale.actors.network.netlink.faults import BRIDGES, SYSCTL, fault_of, no_bridge, not_ours
from aetherscale.actors.network.netlink.requests import Failed, Requests

_IPV6_SETTINGS: Final = Path("/proc/sys/net/ipv6/conf")
_NOTICES_BYTES: Final = 1 << 20
"""How much the kernel keeps of what `watch` has not read; it takes as much as net.core.rmem_max allows."""

_NO_ADDRESSES: Final = ("IFLA_AF_SPEC", {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]})
"""The kernel gives the device no link-local address: IN6_ADDR_GEN_MODE_NONE."""
_FAMILIES: Final = ("IPTABLES", "IP6TABLES", "ARPTABLES")


class Links:
    """The devices of one node, in the network namespace that they were opened in."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._requests = Requests()
        self._batches = count()

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
        """The prefixes that the host has routes to, by number: what a new network must not overlap.

        Addresses of the host are among them, as prefixes of one address. The default routes are not.
        """
        with _told("read the routes of the host"):
            found = await self._requests.routes()
        return sorted(found, key=lambda each: (each.version, int(each.network_address), each.prefixlen))

    def watch(self) -> AsyncGenerator[watching.Change, None]:
        """What happens to devices of ours from now on: see `watching.watch`."""
        return watching.watch(self._with_an_alias, _NOTICES_BYTES)

    async def ensure_bridge(self, name: str, alias: Alias, mtu: int, *, calls_netfilter: bool = False) -> None:
        """Ensure that there is this bridge, up, in which the host takes no address by itself.

        `mtu` is in bytes, 1280 or more. With `calls_netfilter` its packets pass the host's inet hooks (br_netfilter),
        for kernels that cannot track connections in the bridge family.
        """
        operation = f"make the bridge {name}"
        with _told(operation, BRIDGES):
            link = await self._requests.find(name) or await self._make_bridge(name)
            if not self._is(link, alias) and not _is_half_made(link):
                raise not_ours(operation, link)
            settings: list[tuple[str, Any]] = [
                ("IFLA_ADDRESS", mac_of(name)),
                ("IFLA_MTU", mtu),
                ("IFLA_IFALIAS", str(alias)),
                _bridge(*((f"IFLA_BR_NF_CALL_{each}", int(calls_netfilter)) for each in _FAMILIES)),
            ]
            await self._requests.set_link(link.index, [*settings, *_without_addresses(name)])
            _ignore_advertisements(name)
            await self._requests.set_link(link.index, (), up=True)

    async def remove_bridge(self, name: str, alias: Alias) -> None:
        """Ensure that this bridge is gone. Its ports stay, without a bridge."""
        operation = f"remove the bridge {name}"
        with _told(operation):
            link = await self._requests.find(name)
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
                await self._requests.add_address((await self._bridge_of_ours(operation, bridge)).index, address)
            except Failed as failed:
                if failed.code != errno.EEXIST:
                    raise

    async def remove_address(self, bridge: str, address: IPv4Interface | IPv6Interface) -> None:
        """Ensure that a bridge of ours does not have this address."""
        operation = f"take the address {address} from {bridge}"
        with _told(operation):
            link = await self._requests.find(bridge)
            if link is None:
                return
            if not self._is_ours(link):
                raise not_ours(operation, link)
            try:
                await self._requests.remove_address(link.index, address)
            except Failed as failed:
                if failed.code != errno.EADDRNOTAVAIL:
                    raise

    async def open_tap(self, name: str, alias: Alias, bridge: str, group: int) -> int:
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
                link = await self._requests.find(name)
                if link is not None and not (self._is(link, alias) and link.kind == "tun"):
                    raise not_ours(operation, link)
                before = link.index if link is not None else 0
            into = taps.index_of(bridge)
            if not into:
                raise no_bridge(operation, bridge)
            wanted: list[tuple[str, Any]] = [
                ("IFLA_MTU", taps.mtu_of(bridge)),
                ("IFLA_GROUP", group),
                ("IFLA_IFALIAS", str(alias)),
                ("IFLA_MASTER", into),
            ]
            if before:
                await self._set_up(operation, name, bridge, before, wanted)
            descriptor = taps.attach(name, new=not before)
            try:
                if not (index := taps.index_of(name)):
                    raise Failed(errno.ENODEV, "it was renamed as soon as it was made")
                if index != before:
                    await self._set_up(operation, name, bridge, index, wanted)
                taps.keep(descriptor, name)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor

    async def remove_taps(self, names: Sequence[str]) -> None:
        """Ensure that these taps are gone, all at once."""
        operation = "remove taps"
        with _told(operation):
            found = [link for name in names if (link := await self._requests.find(name)) is not None]
            for link in found:
                if not self._is_ours(link):
                    raise not_ours(operation, link)
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
            try:
                await self._requests.set_link(link.index, [("IFLA_GROUP", group)])
            except Failed as failed:
                if failed.code != errno.ENODEV:
                    raise
        await self._requests.remove_group(group)

    async def _make_bridge(self, name: str) -> Link:
        """A bridge that is down and has no alias yet, which the kernel does not take with what makes a device."""
        try:
            await self._requests.make_link([("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac_of(name)), _bridge()])
        except Failed as failed:
            # Another call, or somebody else, was first: what there is now has to be ours.
            if failed.code != errno.EEXIST:
                raise
        link = await self._requests.find(name)
        if link is None:
            raise Failed(errno.ENODEV, "somebody removed it as soon as it was made")
        return link

    async def _set_up(
        self, operation: str, name: str, bridge: str, index: int, wanted: Sequence[tuple[str, Any]]
    ) -> None:
        # Not in one request: the kernel heeds the state before the master and before IFLA_AF_SPEC. For a moment the tap
        # would be up outside of its bridge, where the host itself listens and speaks to the guest.
        try:
            await self._requests.set_link(index, [*wanted, *_without_addresses(name)])
        except Failed as failed:
            into = await self._requests.find(bridge)
            if into is None or into.kind != "bridge":
                raise no_bridge(operation, bridge) from failed
            raise
        await self._requests.set_link(index, (), up=True)

    async def _bridge_of_ours(self, operation: str, name: str) -> Link:
        link = await self._requests.find(name)
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


def _is_half_made(link: Link) -> bool:
    """Whether a node was killed after it had made this bridge, and before the alias was on it.

    Only we make one with the MAC address that follows from its name.
    """
    return link.kind == "bridge" and not link.alias_text and not link.is_up and link.mac == mac_of(link.name)


def _bridge(*settings: tuple[str, int]) -> tuple[str, Any]:
    data = [("IFLA_INFO_DATA", {"attrs": list(settings)})] if settings else []
    return ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge"), *data]})


def _without_addresses(name: str) -> list[tuple[str, Any]]:
    """What keeps the host from giving itself addresses there; nothing where the host has no IPv6."""
    return [_NO_ADDRESSES] if os.access(f"{_IPV6_SETTINGS}/{name}", os.F_OK) else []


def _ignore_advertisements(name: str) -> None:
    """Keep the host from taking an address, and a default route, from a router advertisement of a guest.

    It does so with no link-local address and with IN6_ADDR_GEN_MODE_NONE, too.
    """
    setting = _IPV6_SETTINGS / name / "accept_ra"
    try:
        if setting.read_text().strip() != "0":
            setting.write_text("0")
    except FileNotFoundError:
        return
    except OSError as error:
        said = error.strerror or str(error)
        code = errno.EACCES if error.errno == errno.EPERM else error.errno or errno.EIO
        raise fault_of(f"write {setting}", code, said, SYSCTL) from error


@contextmanager
def _told(operation: str, remedy: str = "") -> Iterator[None]:
    """Tell what the kernel refuses within as a fault; `remedy` is for a kernel that has no devices of this kind."""
    try:
        yield
    except Failed as failed:
        missing = remedy if failed.code == errno.EOPNOTSUPP else ""
        raise fault_of(operation, failed.code, str(failed), missing) from failed
