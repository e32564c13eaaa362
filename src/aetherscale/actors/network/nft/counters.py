"""How many packets of a port were dropped, and why, asked of the kernel by netlink.

libnftables would read every set of every table first (0.16 s with 1,000 ports). Here one port costs ten requests of one
element each, sent in one datagram: NFT_MSG_GETSETELEM of linux/netfilter/nf_tables.h. A kind that the kernel has no
element for is one that no packet was dropped for.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

from aetherscale.actors.network.model.chains import TABLE, Drop
from aetherscale.actors.network.model.ruleset import TAP
from aetherscale.actors.network.nft.messages import (
    GETSETELEM,
    NESTED,
    NETLINK_NETFILTER,
    NEWSETELEM,
    NLMSG_ERROR,
    attribute,
    attributes,
    messages,
    request,
)

NFPROTO_BRIDGE: Final = 7
RECEIVED: Final = 65536
"""How many bytes one answer is read into."""

# Attributes, by the path to the counter: the list's elements, one element, its expression, the expression's data.
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3
LIST_ELEMENT, KEY, KEY_VALUE = 1, 1, 1
ELEMENT_EXPRESSION, EXPRESSION_DATA, COUNTER_PACKETS = 7, 2, 2


class DropCounters:
    """A socket into the network namespace of the thread that makes it. Used by one thread at a time."""

    def __init__(self) -> None:
        """OSError: there is no netlink for netfilter."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._sequence = 0

    def of_port(self, tap: str) -> dict[Drop, int]:
        """The packets dropped of a port since its rules were made or all were replaced; only kinds with some.

        OSError: the kernel refused to say (EPERM without CAP_NET_ADMIN).
        """
        if not TAP.fullmatch(tap):
            raise ValueError(f"{tap!r} is not the name of a tap")
        first = self._sequence + 1
        kinds = dict(enumerate(Drop, first))
        self._sequence += len(kinds)
        self._socket.sendto(b"".join(_request(sequence, tap, kind) for sequence, kind in kinds.items()), (0, 0))
        found: dict[Drop, int] = {}
        while kinds:
            for kind_of_message, sequence, _, body in messages(self._socket.recv(RECEIVED)):
                kind = kinds.pop(sequence, None)
                if kind is None:
                    continue
                if kind_of_message == NEWSETELEM:
                    if packets := _packets(body):
                        found[kind] = packets
                elif kind_of_message == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    if number != errno.ENOENT:
                        raise OSError(number, f"the counters of {tap} cannot be read: {os.strerror(number)}")
        return found

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()


def _request(sequence: int, tap: str, kind: Drop) -> bytes:
    key = tap.encode().ljust(16, b"\0") + struct.pack("=I", kind)
    element = attribute(LIST_ELEMENT | NESTED, attribute(KEY | NESTED, attribute(KEY_VALUE, key)))
    wanted = (
        attribute(LIST_TABLE, TABLE.encode() + b"\0")
        + attribute(LIST_SET, b"drops\0")
        + attribute(LIST_ELEMENTS | NESTED, element)
    )
    return request(GETSETELEM, sequence, NFPROTO_BRIDGE, wanted)


def _packets(body: bytes) -> int:
    elements = attributes(body[4:])[LIST_ELEMENTS]
    expression = attributes(attributes(elements)[LIST_ELEMENT])[ELEMENT_EXPRESSION]
    counter = attributes(attributes(expression)[EXPRESSION_DATA])
    return int.from_bytes(counter[COUNTER_PACKETS], "big")
