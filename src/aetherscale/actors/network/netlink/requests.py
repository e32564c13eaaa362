"""Requests to the kernel about links, routes and addresses.

What a port takes is written by `encoding` and asked by `direct`, since it has to be quick. The rest is pyroute2's,
which matches answers with questions.

pyroute2 reads its socket through a datagram endpoint of the event loop, and uvloop has none for netlink. So the socket
is watched here by `add_reader`, which every loop has.

The kernel does what a request says while it is sent, in the thread that sends it. Removing a device takes
20 ms and more, so removals are sent from another thread.
"""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface
from socket import AF_INET, AF_INET6
from typing import Any, Final, TypeVar

from pyroute2 import AsyncIPRoute  # type: ignore[import-untyped]
from pyroute2.netlink import (  # type: ignore[import-untyped]
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]
from pyroute2.netlink.nlsocket import NetlinkRequest  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl import (  # type: ignore[import-untyped]
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # type: ignore[import-untyped]

from aetherscale.actors.network.model.addresses import Prefix
from aetherscale.actors.network.model.devices import Link
from aetherscale.actors.network.model.views import Traffic
from aetherscale.actors.network.netlink import encoding
from aetherscale.actors.network.netlink.direct import (
    DUMP_ATTEMPTS,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Direct,
    Failed,
)
from aetherscale.actors.network.netlink.encoding import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
)
from aetherscale.actors.network.netlink.messages import HEADER, address_of, link_of, route_of, traffic_of

T = TypeVar("T")

_IFA_F_NODAD: Final = 0x02
_DUMP_INTERRUPTED: Final = 0x10
"""NLM_F_DUMP_INTR: what was dumped changed meanwhile, and something may be missing."""
_WITHOUT_STATISTICS: Final = 1 << 3
"""RTEXT_FILTER_SKIP_STATS."""
_DATAGRAM_BYTES: Final = 1 << 18


class _Endpoint:
    """The side of the socket that reads, as pyroute2 wants a transport."""

    def __init__(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        self._loop, self._number = loop, number

    def abort(self) -> None:
        self._loop.remove_reader(self._number)

    def close(self) -> None:
        pass


class _Route(AsyncIPRoute):  # type: ignore[misc]
    async def setup_endpoint(self) -> None:
        if getattr(self.local, "transport", None) is None:
            loop, socket = asyncio.get_running_loop(), self.socket
            socket.setblocking(False)
            loop.add_reader(socket.fileno(), self._read)
            self.local.transport, self.local.protocol = _Endpoint(loop, socket.fileno()), None

    def _read(self) -> None:
        try:
            data = self.socket.recv(_DATAGRAM_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # An answer was lost: nobody can know whose it was.
            for sequence in list(self.msg_queue.queues):
                self.enqueue(_error(sequence, error.errno or errno.EIO), None)
            return
        self.enqueue(data, None)

    def enqueue(self, data: bytes, addr: object) -> None:
        # An answer that nobody waits for any more would be kept for ever.
        (_, _, _, sequence, _) = HEADER.unpack_from(data)
        if sequence and sequence in self.msg_queue.queues:
            self.msg_queue.put_nowait(sequence, data)


class Requests:
    """A netlink socket of the network namespace that it was opened in. Every method raises `Failed`."""

    def __init__(self) -> None:
        self._route = _Route()
        self._direct: Direct | None = None

    async def open(self) -> None:
        """Open the sockets, of the event loop and of the network namespace that this runs in."""
        self._direct = Direct()
        await self._route.setup_endpoint()

    def close(self) -> None:
        """Close the sockets. Nothing may be in flight."""
        self._route.close()
        if self._direct is not None:
            self._direct.close()

    def find(self, name: str) -> Link | None:
        """The link of this name; None for none."""
        return self._find(encoding.link(attributes=encoding.name(name) + encoding.without_statistics()))

    def at(self, index: int) -> Link | None:
        """The link of this index, whatever it is called; None for none."""
        return self._find(encoding.link(index, encoding.without_statistics()))

    def _find(self, question: bytes) -> Link | None:
        try:
            found = self._ask_directly(RTM_GETLINK, 0, question)
        except Failed as failed:
            if failed.code == errno.ENODEV:
                return None
            raise
        return next(filter(None, map(link_of, found)), None)

    def traffic(self, name: str) -> Traffic | None:
        """What went through a tap of this name, as the other end of it sees it; None where there is none."""
        try:
            found = self._ask_directly(RTM_GETLINK, 0, encoding.link(attributes=encoding.name(name)))
        except Failed as failed:
            if failed.code == errno.ENODEV:
                return None
            raise
        return next(filter(None, map(traffic_of, found)), None)

    async def links(self) -> list[Link]:
        """All links of the host."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_EXT_MASK", _WITHOUT_STATISTICS)]
        return [link for link in await self._dump(message, RTM_GETLINK, link_of) if link is not None]

    async def routes(self) -> set[Prefix]:
        """Where the routes of the host lead, those of its own addresses among them; without the default routes."""
        found: set[Prefix] = set()
        for family in (AF_INET, AF_INET6):
            message = rtmsg()
            message["family"] = family
            found.update(filter(None, await self._dump(message, RTM_GETROUTE, route_of)))
        return found

    async def addresses(self) -> dict[int, set[IPv4Interface | IPv6Interface]]:
        """The addresses of the host, by the index of their link."""
        found: dict[int, set[IPv4Interface | IPv6Interface]] = {}
        for index, address in await self._dump(ifaddrmsg(), RTM_GETADDR, address_of):
            found.setdefault(index, set()).add(address)
        return found

    def make_link(self, attributes: bytes) -> None:
        """Make a link, which is down; EEXIST where there is one of its name."""
        self._ask_directly(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, encoding.link(attributes=attributes))

    def set_link(self, index: int, attributes: bytes = b"", *, up: bool | None = None) -> None:
        """Change a link, in one request; with `up` it is set up, or down, which the kernel may do before the rest."""
        # Without an index the kernel would change every link of the group that the attributes name.
        assert index, attributes
        self._ask_directly(RTM_NEWLINK, 0, encoding.link(index, attributes, up=up))

    def add_static_entry(self, port: int, mac: str) -> None:
        """Let the bridge of a port know for ever that the MAC is behind it, and behind no other port."""
        self._ask_directly(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, encoding.static_entry(port, mac))

    def has_static_entry(self, port: int, mac: str) -> bool:
        """Whether it does."""
        try:
            found = self._ask_directly(RTM_GETNEIGH, 0, encoding.entry(port, mac))
        except Failed as failed:
            # EINVAL: it is no port of a bridge.
            if failed.code in (errno.ENOENT, errno.EINVAL):
                return False
            raise
        return any(encoding.is_static_entry(each, port) for each in found)

    async def remove_link(self, index: int) -> None:
        """Remove a link. One that is gone is no error."""
        await self._remove([], index)

    async def remove_group(self, group: int) -> None:
        """Remove all links of a link group, at once. One without links is no error."""
        await self._remove([("IFLA_GROUP", group)], 0)

    async def add_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """Give a link an address, without duplicate address detection. EEXIST where it has it."""
        await self._change_address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, address)

    async def remove_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """Take an address from a link; EADDRNOTAVAIL where it has none."""
        await self._change_address(RTM_DELADDR, 0, index, address)

    async def _remove(self, attributes: list[tuple[str, int]], index: int) -> None:
        message = ifinfmsg()
        message["index"], message["attrs"] = index, attributes
        try:
            await self._ask(message, RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, link_of, in_thread=True)
        except Failed as failed:
            if failed.code != errno.ENODEV:
                raise

    def _ask_directly(self, kind: int, how: int, body: bytes) -> list[bytes]:
        assert self._direct is not None, "it is not open"
        return self._direct.ask(kind, how, body)

    async def _change_address(self, kind: int, how: int, index: int, address: IPv4Interface | IPv6Interface) -> None:
        message = ifaddrmsg()
        message["family"] = AF_INET if address.version == 4 else AF_INET6
        message["prefixlen"], message["index"] = address.network.prefixlen, index
        message["flags"] = _IFA_F_NODAD if address.version == 6 else 0
        message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
        await self._ask(message, kind, NLM_F_REQUEST | NLM_F_ACK | how, lambda _: None)

    async def _dump(self, message: Any, kind: int, read: Callable[[bytes], T]) -> list[T]:
        for _ in range(DUMP_ATTEMPTS):
            seen_flags: list[int] = []
            found = await self._ask(message, kind, NLM_F_REQUEST | NLM_F_DUMP, read, seen_flags=seen_flags)
            if not any(flags & _DUMP_INTERRUPTED for flags in seen_flags):
                return found
        raise Failed(errno.EAGAIN, "it changed while it was read, again and again")

    async def _ask(
        self,
        message: Any,
        kind: int,
        flags: int,
        read: Callable[[bytes], T],
        *,
        seen_flags: list[int] | None = None,
        in_thread: bool = False,
    ) -> list[T]:
        parser = partial(self._parse, read, seen_flags if seen_flags is not None else [])
        request = NetlinkRequest(self._route, message, msg_type=kind, msg_flags=flags, parser=parser)
        await request.prepare()
        send = partial(self._route.socket.send, request.msg.data)
        try:
            await asyncio.to_thread(send) if in_thread else send()
        except BaseException as error:
            request.cleanup()
            if isinstance(error, OSError):
                raise Failed(error.errno or errno.EIO, error.strerror or str(error)) from error
            raise
        try:
            return [each["read"] async for each in request.response() if "read" in each]
        except NetlinkError as error:
            raise Failed(error.code, str(error.args[-1])) from error
        except OSError as error:
            raise Failed(error.errno or errno.EIO, error.strerror or str(error)) from error

    def _parse(self, read: Callable[[bytes], T], seen_flags: list[int], data: bytes, offset: int, length: int) -> Any:
        _, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        seen_flags.append(flags)
        if kind in (NLMSG_ERROR, NLMSG_DONE):
            return self._route.marshal.parse_one_message(kind, flags, sequence, data, offset, length)
        header = {"type": kind, "flags": flags, "error": None}
        return {"header": header, "read": read(data[offset : offset + length])}


def _error(sequence: int, code: int) -> bytes:
    """A message that says that the request of this sequence number failed."""
    return struct.pack("=IHHIIi", 36, NLMSG_ERROR, 0, sequence, 0, -code) + bytes(HEADER.size)
