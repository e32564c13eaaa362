"""Who asks, and whether they may: by the Unix socket as the kernel says, over TCP by the node's token.

A page in a browser on this host reaches the loopback too. So a request over TCP names one of our own addresses as its
host, which no page of another name can (DNS rebinding), and comes from no other origin. No CORS header is ever sent.
"""

from __future__ import annotations

import grp
import hmac
import os
import re
import secrets
import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale import service, statedir
from aetherscale.bus import peers
from aetherscale.gateways.http.messages import Caller
from aetherscale.gateways.http.problems import HttpError

TOKEN_FILE: Final = "http.token"  # noqa: S105 - the name of the file
TOKEN_BYTES: Final = 32
MAX_TOKEN_BYTES: Final = 256
SO_PEERGROUPS: Final = 59
"""Since Linux 4.13: all groups of the process at the other end, see unix(7)."""
GROUPS_AT_ONCE: Final = 256
"""What one question brings; of a process in more groups the host's own list of its user is asked."""
NOBODY_IN_PARTICULAR: Final = "token:node"
"""The actor where the kernel does not say whose socket it is: whoever has the node's token."""
_BEARER = re.compile(r"[Bb]earer +([\x21-\x7e]{1,256}) *")
_CRED = struct.Struct("=3i")


class Peer(Struct, frozen=True):
    """A process of this host, as the kernel knows it since it connected."""

    uid: int
    gids: frozenset[int]


def token_of(state_dir: Path) -> str:
    """The node's token, made where there is none; its file is its owner's alone. Raises OSError."""
    path = state_dir / TOKEN_FILE
    try:
        statedir.require_files(state_dir, (TOKEN_FILE,))
        found = statedir.read_file(path, MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
        if re.fullmatch(r"[A-Za-z0-9_-]{32,128}", found):
            return found
    except FileNotFoundError:
        pass
    token = secrets.token_urlsafe(TOKEN_BYTES)
    statedir.write_file(path, f"{token}\n".encode())
    return token


def peer_of(connection: socket.socket) -> Peer:
    """The process at the other end of a Unix socket. Raises OSError."""
    _, uid, gid = _CRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CRED.size))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_AT_ONCE)
    except OSError:
        return Peer(uid, frozenset(os.getgrouplist(peers.name_of(uid), gid)))
    return Peer(uid, frozenset({gid, *(each for (each,) in struct.iter_unpack("=i", raw))}))


def may(peer: Peer) -> bool:
    """Whether a local user may use the node: root, the node's own user, and members of the service's group."""
    return peer.uid in (0, os.geteuid()) or _group() in peer.gids


def local(peer: Peer) -> Caller:
    """The caller on the Unix socket. Raises `HttpError` (403)."""
    name = peers.name_of(peer.uid)
    if not may(peer):
        raise HttpError(
            "forbidden",
            f"this node is for root, the user it runs as, and the group {service.GROUP}; {name} is none of these",
            hint=f"as root: usermod -aG {service.GROUP} {name}; then log in again",
        )
    return Caller(f"unix:{name}")


def of_this_host(connection: socket.socket) -> Caller:
    """The caller behind a TCP connection of this host, by the owner of its socket where the kernel says that."""
    ours, theirs = connection.getsockname(), connection.getpeername()
    if connection.family != socket.AF_INET:
        return Caller(NOBODY_IN_PARTICULAR)
    found = peers.peer((theirs[0], theirs[1]), (ours[0], ours[1]))
    return Caller(f"unix:{peers.name_of(found.uid)}" if found is not None else NOBODY_IN_PARTICULAR)


def require_host(headers: dict[str, str], hosts: Collection[str]) -> None:
    """Raises `HttpError` (403) for a request to a host that is none of ours."""
    host = headers.get("host", "").lower()
    if host not in hosts:
        raise HttpError(
            "forbidden",
            f"Host: got {host[:100]!r}, expected {' or '.join(sorted(hosts))}",
            field="Host",
            hint="ask for the address that the node has told at its start",
        )


def require_origin(headers: dict[str, str], hosts: Collection[str]) -> None:
    """Raises `HttpError` (403) for a request from a page of somebody else."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in {f"http://{host}" for host in hosts}:
        raise HttpError("forbidden", f"Origin: got {origin[:100]!r}, which is not this node's", field="Origin")


def require_token(headers: dict[str, str], token: str) -> None:
    """Raises `HttpError` (401) where a request does not bear the node's token."""
    given = headers.get("authorization", "")
    found = _BEARER.fullmatch(given)
    if found is not None and hmac.compare_digest(found.group(1).encode(), token.encode()):
        return
    detail = "the request has no token" if not given else "the token in the request is not this node's"
    raise HttpError(
        "unauthorized",
        detail,
        field="Authorization",
        hint=f"Authorization: Bearer, and what is in {TOKEN_FILE} in the state directory; or use the Unix socket",
        headers=(("www-authenticate", 'Bearer realm="aetherscale"'),),
    )


def _group() -> int | None:
    try:
        return grp.getgrnam(service.GROUP).gr_gid
    except KeyError:
        return None
