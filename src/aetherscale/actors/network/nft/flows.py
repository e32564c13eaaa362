"""The flows of taps, read from the kernel by netlink: NFT_MSG_GETSETELEM of linux/netfilter/nf_tables.h.

libnftables would read every set of the table, and make text of all that is in them.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from msgspec import Struct

from aetherscale.actors.network.model.leases import LEASED
from aetherscale.actors.network.model.marks import FLOWS_TABLE, TABLE
from aetherscale.actors.network.nft.messages import (
    DUMP,
    GETSETELEM,
    NETLINK_NETFILTER,
    NEWSETELEM,
    NLMSG_DONE,
    NLMSG_ERROR,
    attribute,
    attributes,
    elements,
    messages,
    request,
)

NFPROTO_BRIDGE: Final = 7
RECEIVED: Final = 1 << 17
LIST_TABLE, LIST_SET = 1, 2
KEY, KEY_VALUE = 1, 1
_IFNAMSIZ: Final = 16


class Flow(Struct, frozen=True):
    """A flow of a tap, as an element of a set tells of it."""

    tap: str
    local: IPv4Address | IPv6Address
    remote: IPv4Address | IPv6Address
    local_port: int
    remote_port: int

    def key(self) -> str:
        """The element, as nft reads it."""
        return f'"{self.tap}" . {self.local} . {self.remote} . {self.local_port} . {self.remote_port}'


class FlowReader:
    """A socket into the network namespace of the thread that makes it. Used by one thread at a time."""

    def __init__(self) -> None:
        """OSError: there is no netlink for netfilter."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._sequence = 0

    def read(self, name: str) -> list[Flow]:
        """The flows in a set; none where there is no such set. OSError: the kernel refused to say."""
        return [_flow(key) for key in self._keys(name)]

    def read_leases(self) -> list[tuple[str, IPv4Address]]:
        """The taps of ports and the addresses that were leased to them. OSError: the kernel refused to say."""
        return [(_tap(key), IPv4Address(key[_IFNAMSIZ:])) for key in self._keys(LEASED, TABLE)]

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def _keys(self, name: str, table: str = FLOWS_TABLE) -> Iterator[bytes]:
        self._sequence += 1
        wanted = attribute(LIST_TABLE, table.encode() + b"\0") + attribute(LIST_SET, name.encode() + b"\0")
        self._socket.send(request(GETSETELEM, self._sequence, NFPROTO_BRIDGE, wanted, flags=DUMP))
        while True:
            for kind, sequence, _, body in messages(self._socket.recv(RECEIVED)):
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    number = -int.from_bytes(body[:4], "little", signed=True)
                    if number == errno.ENOENT:
                        return
                    raise OSError(number, f"the elements of {name} cannot be read: {os.strerror(number)}")
                if kind == NEWSETELEM:
                    for element in elements(body):
                        yield attributes(attributes(element)[KEY])[KEY_VALUE]


def _tap(key: bytes) -> str:
    return key[:_IFNAMSIZ].rstrip(b"\0").decode(errors="replace")


def _flow(key: bytes) -> Flow:
    """Each part of a key is filled up to four bytes."""
    size = (len(key) - _IFNAMSIZ - 8) // 2
    local, remote, ports = key[_IFNAMSIZ : _IFNAMSIZ + size], key[_IFNAMSIZ + size : -8], key[-8:]
    address = IPv4Address if size == 4 else IPv6Address
    near, far = int.from_bytes(ports[:2], "big"), int.from_bytes(ports[4:6], "big")
    return Flow(_tap(key), address(local), address(remote), near, far)
