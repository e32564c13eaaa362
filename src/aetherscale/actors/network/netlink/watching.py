"""What happens to devices of ours, whoever does it: the kernel's own notifications (rtnetlink(7), RTNLGRP_LINK)."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import closing
from typing import Final

from msgspec import Struct

from aetherscale.actors.network.model.devices import Link
from aetherscale.actors.network.netlink.messages import link_of, messages_of

_RTMGRP_LINK: Final = 1
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_DATAGRAM_BYTES: Final = 1 << 16


class LinkGone(Struct, frozen=True):
    """A device of ours is no longer there; this is the last of it."""

    link: Link


class LinkChanged(Struct, frozen=True):
    """A device of ours is new, or is not as it was; this is how it is now. It may have lost its alias, and its name."""

    link: Link


class Overflow(Struct, frozen=True):
    """Something may have happened that was not heard: everything has to be looked at."""


Change = LinkGone | LinkChanged | Overflow

Look = Callable[[], Awaitable[Iterable[Link]]]
"""Looks at every device that has an alias of ours."""


async def watch(look: Look, receive_bytes: int) -> AsyncGenerator[Change, None]:
    """What happens to devices with an alias of ours, of whichever node, in the present network namespace.

    The first is an `Overflow`, since nothing is known of the time before: who looks at everything then misses nothing.
    The kernel tells nothing of an alias or a group that is given to a device that is down.

    Nothing is read ahead: where the caller is slow, the kernel keeps as many bytes as it is told, and then tells of an
    overflow. Close it (`contextlib.aclosing`) when it is no longer needed.
    """
    loop = asyncio.get_running_loop()
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as listening:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        listening.bind((0, _RTMGRP_LINK))
        # By index: who takes the alias from a device is heard as well.
        known = {link.index: link for link in await look()}
        yield Overflow()
        while True:
            try:
                data = await loop.sock_recv(listening, _DATAGRAM_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                _drain(listening)
                known = {link.index: link for link in await look()}
                yield Overflow()
                continue
            for kind, message in messages_of(data):
                if (change := _change(known, kind, message)) is not None:
                    yield change


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


def _change(known: dict[int, Link], kind: int, message: bytes) -> Change | None:
    """What a message says that is new; `known` are the devices of ours that were heard of, by index."""
    if kind not in (_RTM_NEWLINK, _RTM_DELLINK) or (link := link_of(message)) is None:
        return None
    before = known.get(link.index)
    if before is None and link.alias is None:
        return None
    if kind == _RTM_DELLINK:
        known.pop(link.index, None)
        return LinkGone(link)
    known[link.index] = link
    return LinkChanged(link) if link != before else None
