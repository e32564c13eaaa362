"""Cables (veth) from a network's bridge into the namespace of its resolver.

The far end is in the network namespace of a process, which is named by its pid: no right to enter that namespace is
needed, only CAP_NET_ADMIN over it. Whoever ends the process, or the last one in its namespace, has both ends removed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Interface
from typing import TYPE_CHECKING, Final

from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.devices import Alias, Link
from aetherscale.actors.network.netlink import encoding, settings, taps
from aetherscale.actors.network.netlink.direct import Failed
from aetherscale.actors.network.netlink.faults import fault_of, no_bridge, not_ours

if TYPE_CHECKING:
    from aetherscale.actors.network.netlink.requests import Requests

VETH_MODULE: Final = "load the module: modprobe veth"
_KIND: Final = "resolver"


class Cables:
    """The cables of one node, in the network namespace that this is opened in. Each method raises `Fault`."""

    def __init__(self, node: str) -> None:
        self._node = node
        # Here, since a node without networks goes without the library beneath: a sixth of its memory and of its start.
        from aetherscale.actors.network.netlink.requests import Requests

        self._requests: Requests = Requests()

    async def open(self) -> None:
        """Open the netlink socket."""
        await self._requests.open()

    async def close(self) -> None:
        """Close it. Cables stay as they are."""
        self._requests.close()

    async def ours(self) -> list[Link]:
        """The near end of every cable of this node."""
        with _told("list the network devices"):
            return [link for link in await self._requests.links() if self._is_ours(link)]

    async def connect(
        self, name: str, network_id: str, bridge: str, far: tuple[str, str], pid: int, *, mute: bool = False
    ) -> None:
        """Make a cable from the bridge to the namespace of a process, where its end is `far`: a name and a MAC.

        The process has to be in its own namespace by now. A cable of ours that was there goes first. With `mute` no
        frame that is for one address is sent there, and what is sent from there moves no address.
        """
        operation = f"connect the cable {name}"
        with _told(operation):
            await self._remove(operation, name, network_id)
            into = self._requests.find(bridge)
            if into is None or into.kind != "bridge":
                raise no_bridge(operation, bridge)
            mtu = taps.mtu_of(bridge)
            cable = encoding.veth(far[0], far[1], mtu, pid)
            self._requests.make_link(encoding.name(name) + encoding.address(mac_of(name)) + encoding.mtu(mtu) + cable)
            if (index := taps.index_of(name)) == 0:
                raise Failed(errno.ENODEV, "it was removed as soon as it was made")
            wanted = encoding.alias(str(self._alias(network_id))) + encoding.master(into.index)
            if os.access(f"/proc/sys/net/ipv6/conf/{name}", os.F_OK):
                wanted += encoding.without_addresses()
            self._requests.set_link(index, wanted)
            if mute:
                self._requests.set_link(index, encoding.port_settings(settings.MUTE))
            self._requests.set_link(index, up=True)

    def wrong_with(self, name: str, network_id: str, bridge: str, *, mute: bool = False) -> list[str]:
        """What is not as `connect` made it, in the words of `ip link`; `gone` where there is no such cable."""
        with _told(f"look at the cable {name}"):
            link, into = self._requests.find(name), self._requests.find(bridge)
        if link is None or into is None:
            return ["gone"]
        checks = {
            "alias": link.alias == self._alias(network_id),
            "down": link.is_up,
            "master": link.master == into.index,
            "mtu": link.mtu == into.mtu,
        }
        # The ports of a bridge that is down forward nothing.
        state = settings.FORWARDING if into.is_up else {}
        wanted = {**(settings.MUTE if mute else settings.LEARNING), **state}
        return [what for what, is_right in checks.items() if not is_right] + settings.wrong_with_port(
            link.settings, wanted
        )

    async def remove(self, name: str, network_id: str) -> None:
        """Ensure that this cable is gone, both ends of it."""
        operation = f"remove the cable {name}"
        with _told(operation):
            await self._remove(operation, name, network_id)

    async def add_router(self, bridge: str, address: IPv6Interface) -> None:
        """Ensure that a bridge of ours has this link-local address, by which guests know their router."""
        operation = f"give {bridge} the address {address}"
        with _told(operation):
            link = self._requests.find(bridge)
            if link is None:
                raise no_bridge(operation, bridge)
            if link.alias is None or link.alias.node != self._node:
                raise not_ours(operation, link)
            try:
                await self._requests.add_address(link.index, address)
            except Failed as failed:
                if failed.code != errno.EEXIST:
                    raise

    async def _remove(self, operation: str, name: str, network_id: str) -> None:
        link = self._requests.find(name)
        if link is None:
            return
        if link.alias != self._alias(network_id) and not _is_half_made(link):
            raise not_ours(operation, link)
        await self._requests.remove_link(link.index)

    def _alias(self, network_id: str) -> Alias:
        return Alias(self._node, _KIND, network_id)

    def _is_ours(self, link: Link) -> bool:
        alias = link.alias
        return alias is not None and alias.node == self._node and alias.kind == _KIND


def _is_half_made(link: Link) -> bool:
    """Whether a node was killed after it had made this cable, and before the alias was on it."""
    return link.kind == "veth" and not link.alias_text and not link.is_up and link.mac == mac_of(link.name)


@contextmanager
def _told(operation: str) -> Iterator[None]:
    try:
        yield
    except Failed as failed:
        remedy = VETH_MODULE if failed.code == errno.EOPNOTSUPP else ""
        raise fault_of(operation, failed.code, str(failed), remedy) from failed
