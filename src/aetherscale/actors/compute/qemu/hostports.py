"""The ports of the host that are to lead to a guest: whether QEMU can open them, or a forward may have them.

QEMU opens them itself, and says of one that it could not open only that. So each is tried beforehand; what is taken in
the moment between is found out by QEMU, whose start then fails with its own words.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from aetherscale.actors.compute.model.effects import Forward, PublishedPort
from aetherscale.actors.compute.ports import taken
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault

_FIRST_FREE: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_PRIVILEGED: Final = 1024
"""Where the host does not say from which port on it needs no privilege: ip(7)."""

_NET: Final = Path("/proc/net")
_LISTENS: Final[Mapping[str, str]] = {"tcp": "0A", "udp": "07"}
"""The state of a socket that takes what comes from anywhere, by the protocol: include/net/tcp_states.h."""


def require(ports: Sequence[PublishedPort]) -> None:
    """Raises `Fault`, for the first port that QEMU, which has no privilege, could not open on this host."""
    first = first_free()
    for port in ports:
        if port.host_port < first:
            raise Fault(
                f"QEMU has no privilege to open the port {port.host_port} of the host, nor any below {first}",
                remedy=f"publish a port from {first} on, or: sysctl -w {_sysctl()}={port.host_port}",
                retryable=False,
            )
        _try(port)


def first_free() -> int:
    """The first port that needs no privilege on this host."""
    with suppress(OSError, ValueError):
        return int(_FIRST_FREE.read_text())
    return _PRIVILEGED


def _sysctl() -> str:
    return ".".join(_FIRST_FREE.parts[-3:])


def _try(port: PublishedPort) -> None:
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as tried:
        if port.protocol == "tcp":
            # As QEMU does, so that connections of a run before, which wait for their end, are not in the way.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((port.address, port.host_port))
            if port.protocol == "tcp":
                tried.listen(1)
        except OSError as error:
            raise _fault(port, error) from error


def _fault(port: PublishedPort, error: OSError) -> Fault:
    number = f"{port.host_port}/{port.protocol}"
    match error.errno:
        case errno.EADDRINUSE:
            return Fault(
                f"the port {number} of the host is taken by another program, on {port.address} or on all addresses",
                remedy=f"see which: ss -lnp 'sport = :{port.host_port}'",
                retryable=False,
            )
        case errno.EADDRNOTAVAIL:
            return Fault(
                f"the port {number} of the host cannot be opened on {port.address}, which is no address of this host",
                remedy="see its addresses: ip -br address",
                retryable=False,
            )
        case _:
            return Fault(f"the port {number} of the host cannot be opened on {port.address}: {error.strerror}")


def require_free(forward: Forward) -> None:
    """As in `HostPorts`. The kernel is asked who listens, since to try a port below 1024 may need a privilege."""
    if forward.address:
        _require_own(forward.address)
    everywhere = (forward.address, "0.0.0.0", "::")  # noqa: S104
    for table in (forward.protocol, f"{forward.protocol}6"):
        for address, port, state in _sockets(table):
            listens = port == forward.host_port and state == _LISTENS[forward.protocol]
            if listens and (not forward.address or address in everywhere):
                raise taken(forward)


def _require_own(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.bind((address, 0))
    except OSError as error:
        raise Refused(
            Reason.BAD_REQUEST,
            f"got {address}, expected an address of this host: {error.strerror}",
            field="host-address",
            remedy="see its addresses (ip -br address), or leave it out for all of them",
        ) from error


def _sockets(table: str) -> Iterator[tuple[str, int, str]]:
    """The address, the port and the state of each socket of one of the kernel's tables: proc(5), proc_net_tcp."""
    with suppress(FileNotFoundError):  # of a family that the kernel does not have
        for line in (_NET / table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, port = local.partition(":")
            words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
            yield str(ip_address(b"".join(words))), int(port, 16), state
