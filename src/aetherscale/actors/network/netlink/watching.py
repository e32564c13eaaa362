"""What happens to devices of ours, whoever does it: the kernel's own notifications (rtnetlink(7), RTNLGRP_…).

Of settings of a bridge the kernel tells as of a link, of those of a port as its bridge (AF_BRIDGE), and apart from both
of addresses of the host and of MACs that a bridge knows. Of sysctl settings of a device it tells nothing.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import closing
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.network.model.devices import Link
from aetherscale.actors.network.netlink.messages import address_of, entry_of, link_of, messages_of, port_of

_GROUPS: Final = 0x1 | 0x4 | 0x10 | 0x100
"""RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR."""
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_DELNEIGH = 16, 17, 20, 21, 29
_DATAGRAM_BYTES: Final = 1 << 16
_SO_RCVBUFFORCE: Final = 33
"""More than net.core.rmem_max, which CAP_NET_ADMIN may exceed."""


class LinkGone(Struct, frozen=True):
    """A device of ours is no longer there; this is the last of it."""

    link: Link
    known_as: str
    """The name that it had when it was heard of first."""


class LinkChanged(Struct, frozen=True):
    """A device of ours is new, or is not as it was, or has other addresses of the host, or its bridge has forgotten a
    MAC; this is how it is now. It may have lost its alias, and its name.
    """

    link: Link
    known_as: str
    """The name that it had when it was heard of first."""


class Overflow(Struct, frozen=True):
    """Something may have happened that was not heard: everything has to be looked at."""


Change = LinkGone | LinkChanged | Overflow

Look = Callable[[], Awaitable[Iterable[Link]]]
"""Looks at every device that has an alias of ours."""


Also = Callable[[Link], str]
"""The name that a device without such an alias is known as, where it is to be heard of nevertheless; else ""."""


def nothing(link: Link) -> str:
    """No other device."""
    return ""


async def watch(look: Look, receive_bytes: int, also: Also = nothing) -> AsyncGenerator[Change, None]:
    """What happens to devices with an alias of ours, of whichever node, in the present network namespace.

    The first is an `Overflow`, since nothing is known of the time before: who looks at everything then misses nothing.
    The kernel tells nothing of an alias or a group that is given to a device that is down.

    Nothing is read ahead: where the caller is slow, the kernel keeps as many bytes as it is told, and then tells of an
    overflow. Close it (`contextlib.aclosing`) when it is no longer needed.
    """
    loop = asyncio.get_running_loop()
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as listening:
        listening.setblocking(False)
        _make_room(listening, receive_bytes)
        listening.bind((0, _GROUPS))
        known = _Known(await look(), also)
        yield Overflow()
        while True:
            try:
                data = await loop.sock_recv(listening, _DATAGRAM_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                _drain(listening)
                known = _Known(await look(), also)
                yield Overflow()
                continue
            for kind, message in messages_of(data):
                if (change := known.heard(kind, message)) is not None:
                    yield change


def _make_room(listening: socket.socket, receive_bytes: int) -> None:
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
    except PermissionError:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)


def _drain(listening: socket.socket) -> None:
    """Read all that is there: until then the kernel drops what comes, and does not tell of that again."""
    while True:
        try:
            listening.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


class _Known:
    """The devices of ours that were heard of, by index: who takes the alias or the name from one is heard as well."""

    def __init__(self, links: Iterable[Link], also: Also) -> None:
        self._also = also
        self._links = {link.index: link for link in links}
        self._names = {link.index: link.name for link in self._links.values()}

    def heard(self, kind: int, message: bytes) -> Change | None:
        """What a message says that is new."""
        if kind in (_RTM_NEWADDR, _RTM_DELADDR):
            return self._again(address_of(message)[0])
        if kind == _RTM_DELNEIGH:
            return self._again(entry_of(message))
        if kind not in (_RTM_NEWLINK, _RTM_DELLINK):
            return None
        if kind == _RTM_NEWLINK and (port := port_of(message)) is not None:
            index, settings = port
            before = self._links.get(index)
            return None if before is None else self._changed(replace(before, settings=settings))
        link = link_of(message)
        if link is None:
            return None
        if link.index not in self._links:
            name = link.name if link.alias is not None else self._also(link)
            if not name:
                return None
            self._names[link.index] = name
        if kind == _RTM_DELLINK:
            self._links.pop(link.index, None)
            return LinkGone(link, self._names.pop(link.index))
        return self._changed(link)

    def _changed(self, link: Link) -> LinkChanged | None:
        if self._links.get(link.index) == link:
            return None
        self._links[link.index] = link
        return LinkChanged(link, self._names[link.index])

    def _again(self, index: int) -> LinkChanged | None:
        link = self._links.get(index)
        return None if link is None else LinkChanged(link, self._names[index])
