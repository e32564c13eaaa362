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
from collections.abc import Iterator
from typing import Final

from aetherscale.actors.network.model.chains import TABLE, Drop
from aetherscale.actors.network.model.ruleset import TAP

NETLINK_NETFILTER: Final = 12
NFPROTO_BRIDGE: Final = 7
NFT_SUBSYSTEM: Final = 10 << 8
NEWSETELEM: Final = NFT_SUBSYSTEM | 12
GETSETELEM: Final = NFT_SUBSYSTEM | 13
NLMSG_ERROR: Final = 2
NLM_F_REQUEST: Final = 1
NESTED: Final = 0x8000
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
            for kind_of_message, sequence, body in _messages(self._socket.recv(RECEIVED)):
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
    element = _attribute(LIST_ELEMENT | NESTED, _attribute(KEY | NESTED, _attribute(KEY_VALUE, key)))
    body = (
        struct.pack("!BBH", NFPROTO_BRIDGE, 0, 0)
        + _attribute(LIST_TABLE, TABLE.encode() + b"\0")
        + _attribute(LIST_SET, b"drops\0")
        + _attribute(LIST_ELEMENTS | NESTED, element)
    )
    return struct.pack("=IHHII", 16 + len(body), GETSETELEM, NLM_F_REQUEST, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The type, sequence number and body of each message."""
    at = 0
    while at < len(datagram):
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", datagram, at)
        yield kind, sequence, datagram[at + 16 : at + length]
        at += (length + 3) & ~3


def _packets(body: bytes) -> int:
    elements = _attributes(body[4:])[LIST_ELEMENTS]
    expression = _attributes(_attributes(elements)[LIST_ELEMENT])[ELEMENT_EXPRESSION]
    counter = _attributes(_attributes(expression)[EXPRESSION_DATA])
    return int.from_bytes(counter[COUNTER_PACKETS], "big")


def _attributes(block: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(block):
        length, kind = struct.unpack_from("=HH", block, at)
        found[kind & 0x3FFF] = block[at + 4 : at + length]
        at += (length + 3) & ~3
    return found
