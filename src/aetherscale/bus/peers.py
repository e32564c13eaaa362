"""The user whose socket on this host is at the other end of a TCP connection, and how much it has sent.

The kernel is asked for the one socket (sock_diag(7)), which takes microseconds: reading /proc/net/tcp goes through all
that could be. Where it does not answer, as in some sandboxes, that table has to do. Has never heard of NATS.
"""

from __future__ import annotations

import pwd
import re
import socket
import struct
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from msgspec import Struct

TCP: Final = Path("/proc/net/tcp")
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 1
INET_DIAG_INFO: Final = 2
ANSWER_S: Final = 0.5
MAX_ANSWER_BYTES: Final = 8192

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI")
_ENDS = struct.Struct("!HH4s12x4s12x")
_ANY: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
"""On any interface, with any cookie."""
_ANSWER = struct.Struct("=4x36xIQIIIII")
"""After the header: the two ends, interface, cookie, three numbers, uid, inode."""
_ATTRIBUTE = struct.Struct("=HH")
_BYTES_SENT_AT: Final = 200
"""In `struct tcp_info`, since Linux 4.19."""
_NAME = re.compile(r"[A-Za-z0-9._@+-]{1,64}")

End = tuple[str, int]
"""An IPv4 address and a port."""


class Peer(Struct, frozen=True):
    """One socket. `cookie` is no other's while the host is up; `sent_bytes` is all that it has sent so far.

    Both are 0 where the kernel does not say.
    """

    uid: int
    cookie: int = 0
    sent_bytes: int = 0


def peer(local: End, remote: End) -> Peer | None:
    """The socket of this host that has these ends; None where there is none any more."""
    try:
        return ask_kernel(local, remote)
    except OSError:
        return look_up(local, remote)


def ask_kernel(local: End, remote: End) -> Peer | None:
    """As `peer`. Raises OSError where the kernel does not answer. Source: linux/inet_diag.h, linux/tcp.h."""
    ends = _ENDS.pack(local[1], remote[1], IPv4Address(local[0]).packed, IPv4Address(remote[0]).packed)
    wanted = 1 << (INET_DIAG_INFO - 1)
    body = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, wanted, 0xFFFFFFFF) + ends + _ANY
    header = _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(ANSWER_S)
        kernel.sendto(header + body, (0, 0))
        answer = kernel.recv(MAX_ANSWER_BYTES)
    if _HEADER.unpack_from(answer)[1] != SOCK_DIAG_BY_FAMILY:
        return None
    _, cookie, _, _, _, uid, _ = _ANSWER.unpack_from(answer, _HEADER.size)
    return Peer(uid, cookie, _sent_bytes(answer))


def _sent_bytes(answer: bytes) -> int:
    at = _HEADER.size + _ANSWER.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == INET_DIAG_INFO and length >= _ATTRIBUTE.size + _BYTES_SENT_AT + 8:
            sent: int = struct.unpack_from("=Q", answer, at + _ATTRIBUTE.size + _BYTES_SENT_AT)[0]
            return sent
        at += max(-(-length // 4) * 4, _ATTRIBUTE.size)
    return 0


def look_up(local: End, remote: End, table: Path = TCP) -> Peer | None:
    """As `peer`. Source: proc(5), /proc/net/tcp."""
    wanted = f" {_end(*local)} {_end(*remote)} "
    for line in table.read_text().splitlines():
        if wanted in line:
            # number, local, remote, state, queues, timer, retransmissions, uid
            return Peer(int(line.split()[7]))
    return None


def _end(address: str, port: int) -> str:
    """As the kernel writes it: an address is a number in the byte order of the host."""
    return f"{int.from_bytes(IPv4Address(address).packed, sys.byteorder):08X}:{port:04X}"


def name_of(uid: int) -> str:
    """The name of a user of this host; the number where it has none that can be written down."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if _NAME.fullmatch(name) else str(uid)
