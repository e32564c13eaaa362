"""Messages of nfnetlink, most of them about nf_tables (linux/netfilter/nf_tables.h): as bytes, in and out.

Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

NETLINK_NETFILTER: Final = 12
NFT_SUBSYSTEM: Final = 10 << 8
GETTABLE: Final = NFT_SUBSYSTEM | 1
GETCHAIN: Final = NFT_SUBSYSTEM | 4
GETRULE: Final = NFT_SUBSYSTEM | 7
GETSET: Final = NFT_SUBSYSTEM | 10
NEWSETELEM: Final = NFT_SUBSYSTEM | 12
GETSETELEM: Final = NFT_SUBSYSTEM | 13
NEWGEN: Final = NFT_SUBSYSTEM | 15
GETGEN: Final = NFT_SUBSYSTEM | 16
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
DUMP: Final = 0x300
"""NLM_F_DUMP: all that there is, up to an NLMSG_DONE."""
NESTED: Final = 0x8000

_NLM_F_REQUEST: Final = 1
_TYPE_MASK: Final = 0x3FFF
_HEADER: Final = struct.Struct("=IHHII")
"""Of every netlink message: length, type, flags, sequence number, port id."""
_FAMILY: Final = struct.Struct("!BBH")
"""nfgenmsg: family, version, number of the resource."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_ELEMENTS: Final = 3
"""NFTA_SET_ELEM_LIST_ELEMENTS."""


def request(
    kind: int, sequence: int, family: int, attributes: bytes = b"", *, flags: int = 0, resource: int = 0
) -> bytes:
    """A message that asks the kernel for something; `resource` is the number of what it is about."""
    body = _FAMILY.pack(family, 0, resource) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, sequence, 0) + body


def elements(body: bytes) -> Iterator[bytes]:
    """The attributes of each element in a message of elements."""
    return (element for _, element in pairs(attributes(body[4:]).get(_ELEMENTS, b"")))


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute; with `NESTED` in its kind, the value is attributes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def messages(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The type, sequence number, port id and body of each message; one of nf_tables begins with the family."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, _, sequence, port = _HEADER.unpack_from(datagram, at)
        if not _HEADER.size <= length <= len(datagram) - at:
            return
        yield kind, sequence, port, datagram[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(block: bytes) -> dict[int, bytes]:
    """The values of attributes by their kinds; `block` of a message of nf_tables begins after its family."""
    return dict(pairs(block))


def pairs(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The kind and value of each attribute, in order, as of a list, in which all have one kind."""
    at = 0
    while at + _ATTRIBUTE.size <= len(block):
        length, kind = _ATTRIBUTE.unpack_from(block, at)
        if length < _ATTRIBUTE.size:
            break
        yield kind & _TYPE_MASK, block[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
