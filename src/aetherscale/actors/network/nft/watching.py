"""What somebody else does to our rules: nf_tables' own notifications, which name the program that did it.

Of one transaction the kernel tells what it changed, message by message, and then its generation, NFT_MSG_NEWGEN. What a
packet adds to a set is no transaction, and is not told. Our own transactions are known by the socket that sent them:
the thread that the kernel names may be any of ours, and in a container it has another number there than here.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import struct
from collections.abc import AsyncGenerator, Iterable
from contextlib import closing
from typing import Final

from msgspec import Struct

from aetherscale.actors.network.model.marks import FLOWS_TABLE, TABLE
from aetherscale.actors.network.model.ruleset import FAMILIES, STRANGE_FAMILIES
from aetherscale.actors.network.nft.messages import (
    GETGEN,
    NETLINK_NETFILTER,
    NEWGEN,
    NFT_SUBSYSTEM,
    NLMSG_ERROR,
    attributes,
    messages,
    request,
)

RECEIVE_BYTES: Final = 16 << 20
"""How much the kernel keeps of what `watch` has not read.

To replace the rules of 1,000 ports takes 2 MiB of it, and the kernel doubles the figure: an overflow that is answered
by replacing all must not be followed by another. It is more than net.core.rmem_max, which CAP_NET_ADMIN may exceed.
"""

_NFNLGRP_NFTABLES: Final = 7
_FAMILY_NUMBERS: Final = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
"""NFPROTO_…: all families of nf_tables."""
_OURS: Final = frozenset(_FAMILY_NUMBERS[family] for family in FAMILIES)
_STRANGE: Final = frozenset(_FAMILY_NUMBERS[family] for family in STRANGE_FAMILIES)
_TABLE: Final = TABLE.encode() + b"\0"
_FLOWS: Final = FLOWS_TABLE.encode() + b"\0"
_OF_TABLE: Final = 1
"""The attribute that has the table's name, in every message but of the generation."""
_GEN_ID, _GEN_PROC_PID, _GEN_PROC_NAME = 1, 2, 3
_SUBSYSTEM_MASK: Final = 0xFF00
_DATAGRAM_BYTES: Final = 1 << 16
_SO_RCVBUFFORCE: Final = 33

_STRANGE_TABLES: Final = "tables of our name"
"""Of a family that none of ours is of; whatever is put into one."""
FLOWS: Final = "flows"
"""Whatever is in the table of flows."""
_NOUNS: Final = (_STRANGE_TABLES, "tables", FLOWS, "chains", "rules", "sets", "elements", "objects", "flowtables")
"""The most telling first: who removes a table removes all that is in it."""
_NEW: Final = {0: "tables", 3: "chains", 6: "rules", 9: "sets", 12: "elements", 18: "objects", 22: "flowtables"}
_GONE: Final = {2: "tables", 5: "chains", 8: "rules", 11: "sets", 14: "elements", 20: "objects", 24: "flowtables"}
_ADDED: Final = ("rules", "elements", _STRANGE_TABLES)
"""What is new where the kernel tells of one. Of the others it tells as much when they get another policy or flag."""


class RulesChanged(Struct, frozen=True):
    """Somebody else has changed our tables: they are no longer what we made them."""

    generation: int
    """Of all rules of the host, after it."""
    pid: int
    """Of the thread that did it, as the kernel numbers them, outside of any container."""
    program: str
    """The name of that thread: at most 15 characters, all printable, chosen by whoever runs it."""
    what: str
    """The most telling of it: `tables removed`, `flows changed`, `rules added`, `elements changed`."""


class Overflow(Struct, frozen=True):
    """Something may have happened that was not heard: the rules may not be ours.

    They are where `generation` is still what it was when they were known to be.
    """


Change = RulesChanged | Overflow


async def watch(receive_bytes: int = RECEIVE_BYTES) -> AsyncGenerator[Change, None]:
    """What anybody but this process does to our tables from now on, in the present network namespace.

    The first is an `Overflow`, since nothing is known of the time before: who replaces all rules then misses nothing.
    Each transaction is told once, however much it changes, and only where it touches a table of ours. What this process
    does is not told, by whichever thread and socket, as long as the socket is open.

    Nothing is read ahead: where the caller is slow, the kernel keeps as many bytes as it is told, and then tells of an
    overflow. OSError: the kernel refuses to tell (EPERM without CAP_NET_ADMIN). Close it (`contextlib.aclosing`) when
    it is no longer needed.
    """
    loop = asyncio.get_running_loop()
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)) as heard:
        heard.setblocking(False)
        _make_room(heard, receive_bytes)
        heard.bind((0, 1 << _NFNLGRP_NFTABLES - 1))
        transactions = Transactions()
        yield Overflow()
        while True:
            try:
                data = await loop.sock_recv(heard, _DATAGRAM_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                _drain(heard)
                transactions.forget()
                yield Overflow()
                continue
            for change in transactions.read(data):
                yield change


class Generation:
    """The number of the last transaction of nf_tables, whoever's, in the network namespace of the thread that makes it.

    As long as it is the same, no rule has changed; one request of 0.05 ms tells. A transaction adds one to it: where
    more has been added since before a transaction of ours, somebody else's came between, and the rules may not be ours.
    It has one socket for good: the kernel closes one only when it has destroyed whatever a transaction before it has
    removed, for which it waits 10 ms and more.
    """

    def __init__(self) -> None:
        """OSError: there are no descriptors left."""
        self._asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._sequence = 0

    def now(self) -> int:
        """The number now. OSError: the kernel refuses to say (EPERM without CAP_NET_ADMIN)."""
        self._sequence = self._sequence % 0x7FFF_FFFF + 1
        self._asking.send(request(GETGEN, self._sequence, 0))
        for kind, _, _, body in messages(self._asking.recv(_DATAGRAM_BYTES)):
            if kind == NEWGEN:
                return _number(attributes(body[4:])[_GEN_ID])
            if kind == NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, f"the generation of the rules cannot be read: {os.strerror(number)}")
        raise OSError(errno.EIO, "the kernel did not tell the generation of the rules")

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._asking.close()


def generation() -> int:
    """The same, asked once, in the network namespace of this thread."""
    with closing(Generation()) as asked:
        return asked.now()


class Transactions:
    """Tells transactions of others that touch our tables, of the messages that come."""

    def __init__(self) -> None:
        self._new: set[str] = set()
        self._gone: set[str] = set()
        self._own = _OwnSockets()

    def forget(self) -> None:
        """What was heard of a transaction whose end may be lost."""
        self._new.clear()
        self._gone.clear()

    def read(self, datagram: bytes) -> Iterable[RulesChanged]:
        """Those that end in this datagram."""
        own = None
        for kind, _, port, body in messages(datagram):
            if kind == NEWGEN:
                if self._new or self._gone:
                    of = attributes(body[4:])
                    program = _printable(of.get(_GEN_PROC_NAME, b"").rstrip(b"\0"))
                    yield RulesChanged(_number(of[_GEN_ID]), _number(of.get(_GEN_PROC_PID)), program, self._what())
                self.forget()
            elif port != own and (noun := _touched(kind, body)):
                # Asked once of a transaction: at its first message, or with each datagram if it is ours.
                if not (self._new or self._gone) and self._own.has(port):
                    own = port
                else:
                    (self._new if kind & ~_SUBSYSTEM_MASK in _NEW else self._gone).add(noun)

    def _what(self) -> str:
        noun = next(noun for noun in _NOUNS if noun in self._new or noun in self._gone)
        if noun not in self._new:
            return f"{noun} removed"
        return f"{noun} added" if noun in _ADDED and noun not in self._gone else f"{noun} changed"


def _touched(kind: int, body: bytes) -> str:
    """Of what sort the part of our tables is that a message is about; "" where it is not about them."""
    if kind & _SUBSYSTEM_MASK != NFT_SUBSYSTEM or not body or body[0] not in _FAMILY_NUMBERS.values():
        return ""
    number = kind & ~_SUBSYSTEM_MASK
    noun = _NEW.get(number) or _GONE.get(number, "")
    if body[0] in _STRANGE:
        # Whoever removes one does what we would do.
        noun = _STRANGE_TABLES if number in _NEW else ""
    table = attributes(body[4:]).get(_OF_TABLE)
    if table == _FLOWS:
        return FLOWS if noun not in ("", "tables", _STRANGE_TABLES) else noun
    return noun if table == _TABLE else ""


class _OwnSockets:
    """Tells sockets of this process by their port id, which no other socket of the namespace has meanwhile.

    All of them are taken to be of the namespace that is watched. libnftables does not tell its socket, and may open
    another one. So all descriptors of the process are looked at, where a port is not known.
    """

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}

    def has(self, port: int) -> bool:
        """Whether it is a port of a socket of ours."""
        descriptor = self._descriptors.get(port)
        if descriptor is None or _port_of(descriptor) != port:
            self._descriptors = _sockets()
        return port in self._descriptors


def _sockets() -> dict[int, int]:
    """The descriptors of this process that are sockets to netfilter, by their port id."""
    descriptors = map(int, os.listdir("/proc/self/fd"))
    return {port: descriptor for descriptor in descriptors if (port := _port_of(descriptor)) is not None}


_libc: Final = ctypes.CDLL(None)
_ADDRESS: Final = struct.Struct("=HHII")
"""sockaddr_nl: family, padding, port id, groups."""


def _port_of(descriptor: int) -> int | None:
    """The port id of a socket to netfilter; None for any other descriptor, and where it is closed or has none yet.

    Not by a copy of the descriptor: to close one of a file gives up every lock that the process has on that.
    """
    number, size = ctypes.c_int(), ctypes.c_uint32(ctypes.sizeof(ctypes.c_int))
    asked = (descriptor, socket.SOL_SOCKET, socket.SO_PROTOCOL, ctypes.byref(number), ctypes.byref(size))
    if _libc.getsockopt(*asked) != 0 or number.value != NETLINK_NETFILTER:
        return None
    address, size = ctypes.create_string_buffer(128), ctypes.c_uint32(128)
    if _libc.getsockname(descriptor, address, ctypes.byref(size)) != 0:
        return None
    family, _, port, _ = _ADDRESS.unpack_from(address)
    return int(port) or None if family == socket.AF_NETLINK else None


def _make_room(heard: socket.socket, receive_bytes: int) -> None:
    try:
        heard.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
    except PermissionError:
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)


def _drain(heard: socket.socket) -> None:
    """Read all that is there: until then the kernel drops what comes, and does not tell of that again."""
    while True:
        try:
            heard.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", "big")


def _printable(name: bytes) -> str:
    text = name.decode(errors="backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
