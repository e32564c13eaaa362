"""The packets that the kernel logs as it drops them: nfnetlink_log (linux/netfilter/nfnetlink_log.h).

It logs nothing by itself: `model/droplog.py` has the rules. One socket of a network namespace has the group; without
it, what is logged is lost, and costs as good as nothing.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from aetherscale.actors.network.model.droplog import GROUP, SNAP_BYTES, Direction
from aetherscale.actors.network.model.frames import read
from aetherscale.actors.network.model.marks import Drop
from aetherscale.actors.network.model.views import Frame
from aetherscale.actors.network.nft.messages import (
    NETLINK_NETFILTER,
    NLMSG_ERROR,
    attribute,
    attributes,
    messages,
    request,
)

_SUBSYSTEM: Final = 4 << 8
"""NFNL_SUBSYS_ULOG."""
_PACKET: Final = _SUBSYSTEM | 0
_CONFIGURE: Final = _SUBSYSTEM | 1
_ACK: Final = 4
"""NLM_F_ACK."""

# What a configuration says: to bind, how much of a packet is copied, when to send at the latest (in hundredths of a
# second), and after how many packets.
_COMMAND, _MODE, _TIMEOUT, _THRESHOLD = 1, 2, 4, 5
_BIND: Final = b"\x01"
_COPY_PACKET: Final = 2
_WAITS_CS: Final = 10
_AT_ONCE: Final = 16

# Attributes of a packet. In the bridge's hooks PHYS… are the ports, and the others the bridges.
_HEADER, _MARK, _INDEV, _OUTDEV, _PHYSINDEV, _PHYSOUTDEV, _PAYLOAD, _PREFIX, _HWHEADER = 1, 2, 4, 5, 6, 7, 9, 10, 16
_BRIDGE: Final = 7
"""NFPROTO_BRIDGE."""
_LOCAL_IN: Final = b"\1"
"""The hook NF_INET_LOCAL_IN."""
_DIRECTIONS: Final[Mapping[bytes, Direction]] = {b"in\0": "in", b"out\0": "out"}
_DATAGRAM_BYTES: Final = 1 << 16
_KINDS: Final = {int(kind): kind for kind in Drop}


class Logged(Struct, frozen=True):
    """A packet that was dropped."""

    direction: Direction
    """Whether it was sent to a port or by one."""
    kind: Drop | None
    """Why, where it was dropped at the port; None where the host did, which it was sent to or by way of."""
    indev: int
    """The index of the device that it came from: the port, or the network's bridge where the host dropped it; 0 for
    none.
    """
    outdev: int
    """The same of the device that it was to leave by."""
    is_to_host: bool
    """Whether it was sent to the host itself."""
    frame: Frame


class DropLog:
    """The group of nflog, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        """OSError: the kernel has no nflog, another program has the group, or EPERM without CAP_NET_ADMIN."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._configure()
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    async def read(self) -> list[Logged]:
        """What was logged since; waits for it. What is not read in time is lost."""
        while True:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._socket, _DATAGRAM_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            if found := list(logged(data)):
                return found

    def close(self) -> None:
        """Let go of the group. Idempotent."""
        self._socket.close()

    def _configure(self) -> None:
        wanted = (
            attribute(_COMMAND, _BIND)
            + attribute(_MODE, struct.pack("!IBB", SNAP_BYTES, _COPY_PACKET, 0))
            + attribute(_TIMEOUT, struct.pack("!I", _WAITS_CS))
            + attribute(_THRESHOLD, struct.pack("!I", _AT_ONCE))
        )
        self._socket.send(request(_CONFIGURE, 1, socket.AF_UNSPEC, wanted, flags=_ACK, resource=GROUP))
        for kind, _, _, body in messages(self._socket.recv(_DATAGRAM_BYTES)):
            number = -struct.unpack_from("=i", body)[0] if kind == NLMSG_ERROR else 0
            if number:
                raise OSError(number, f"nflog refuses its group {GROUP}: {os.strerror(number)}")


def logged(datagram: bytes) -> Iterator[Logged]:
    """The packets in a datagram, without those that are none of ours."""
    for kind, _, _, body in messages(datagram):
        found = attributes(body[4:]) if kind == _PACKET else {}
        direction = _DIRECTIONS.get(found.get(_PREFIX, b""))
        why = _KINDS.get(_number(found.get(_MARK))) if body[0] == _BRIDGE else None
        if direction is None or _HEADER not in found or (why is None and body[0] == _BRIDGE):
            continue
        indev, outdev = (_number(found.get(one)) or _number(found.get(other)) for one, other in _DEVICES)
        frame = read(_number(found[_HEADER][:2]), found.get(_HWHEADER, b""), found.get(_PAYLOAD, b""))
        is_to_host = body[0] != _BRIDGE and found[_HEADER][2:3] == _LOCAL_IN
        yield Logged(direction, why, indev, outdev, is_to_host, frame)


_DEVICES: Final = ((_PHYSINDEV, _INDEV), (_PHYSOUTDEV, _OUTDEV))


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", "big")
