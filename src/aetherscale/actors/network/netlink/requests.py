"""Requests to the kernel about links, routes and addresses: pyroute2 writes them, and matches answers with questions.

pyroute2 reads its socket through a datagram endpoint of the event loop, and uvloop has none for netlink. So the socket
is watched here by `add_reader`, which every loop has.

The kernel does what a request says while it is sent, in the thread that sends it. Removing a device takes
20 ms and more, so removals are sent from another thread.
"""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface
from socket import AF_INET, AF_INET6
from typing import Any, Final, TypeVar

from pyroute2 import AsyncIPRoute  # type: ignore[import-untyped]
from pyroute2.netlink import (  # type: ignore[import-untyped]
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]
from pyroute2.netlink.nlsocket import NetlinkRequest  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl import (  # type: ignore[import-untyped]
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # type: ignore[import-untyped]
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # type: ignore[import-untyped]

from aetherscale.actors.network.model.addresses import Prefix
from aetherscale.actors.network.model.devices import Link
from aetherscale.actors.network.netlink.messages import HEADER, link_of, route_of

T = TypeVar("T")

Attributes = Sequence[tuple[str, Any]]
"""Of a link, by the kernel's names: `("IFLA_MTU", 1500)`."""

_IFF_UP: Final = 1
_IFA_F_NODAD: Final = 0x02
_DUMP_INTERRUPTED: Final = 0x10
"""NLM_F_DUMP_INTR: what was dumped changed meanwhile, and something may be missing."""
_DUMP_ATTEMPTS: Final = 10
_WITHOUT_STATISTICS: Final = 1 << 3
"""RTEXT_FILTER_SKIP_STATS: three quarters of what the kernel has to say of a link."""
_DATAGRAM_BYTES: Final = 1 << 18


class Failed(Exception):
    """The kernel refused a request: the number of its error, and what it said."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code


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

    async def open(self) -> None:
        """Open the socket, of the event loop and of the network namespace that this runs in."""
        await self._route.setup_endpoint()

    def close(self) -> None:
        """Close the socket. Nothing may be in flight."""
        self._route.close()

    async def find(self, name: str) -> Link | None:
        """The link of this name; None for none."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_EXT_MASK", _WITHOUT_STATISTICS)]
        try:
            found = await self._ask(message, RTM_GETLINK, NLM_F_REQUEST, link_of)
        except Failed as failed:
            if failed.code == errno.ENODEV:
                return None
            raise
        return next(filter(None, found), None)

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

    async def make_link(self, attributes: Attributes) -> None:
        """Make a link, which is down; EEXIST where there is one of its name."""
        await self._change(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, attributes)

    async def set_link(self, index: int, attributes: Attributes, *, up: bool = False) -> None:
        """Change a link, in one request; with `up` it is set up, which the kernel may do before the rest."""
        await self._change(RTM_NEWLINK, 0, attributes, index=index, flags=_IFF_UP if up else 0)

    async def remove_link(self, index: int) -> None:
        """Remove a link. One that is gone is no error."""
        await self._remove((), index)

    async def remove_group(self, group: int) -> None:
        """Remove all links of a link group, at once. One without links is no error."""
        await self._remove((("IFLA_GROUP", group),), 0)

    async def add_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """Give a link an address, without duplicate address detection. EEXIST where it has it."""
        await self._change_address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, address)

    async def remove_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """Take an address from a link; EADDRNOTAVAIL where it has none."""
        await self._change_address(RTM_DELADDR, 0, index, address)

    async def _change(
        self, kind: int, how: int, attributes: Attributes, *, index: int = 0, flags: int = 0, removes: bool = False
    ) -> None:
        # Without an index the kernel would change every link of the group that the attributes name.
        assert index or kind != RTM_NEWLINK or how, attributes
        message = ifinfmsg()
        message["index"], message["flags"], message["change"] = index, flags, flags
        message["attrs"] = list(attributes)
        await self._ask(message, kind, NLM_F_REQUEST | NLM_F_ACK | how, link_of, in_thread=removes)

    async def _remove(self, attributes: Attributes, index: int) -> None:
        try:
            await self._change(RTM_DELLINK, 0, attributes, index=index, removes=True)
        except Failed as failed:
            if failed.code != errno.ENODEV:
                raise

    async def _change_address(self, kind: int, how: int, index: int, address: IPv4Interface | IPv6Interface) -> None:
        message = ifaddrmsg()
        message["family"] = AF_INET if address.version == 4 else AF_INET6
        message["prefixlen"], message["index"] = address.network.prefixlen, index
        message["flags"] = _IFA_F_NODAD if address.version == 6 else 0
        message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
        await self._ask(message, kind, NLM_F_REQUEST | NLM_F_ACK | how, lambda _: None)

    async def _dump(self, message: Any, kind: int, read: Callable[[bytes], T]) -> list[T]:
        for _ in range(_DUMP_ATTEMPTS):
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
