"""Where a download may lead to: to public addresses, and to those that the node's settings allow.

An import by any caller must not reach the services of the host and of its network, which trust all that can reach them.
The address is judged that is connected to, not its name: a name may mean another address a moment later.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_MOST_TRIED: Final = 8


class Forbidden(Exception):
    """A host has no address that may be connected to."""


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    """Whether an address, as the resolver writes it, may be connected to."""
    try:
        found: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    meant = _meant(found)
    if any(each in network for network in networks for each in (found, meant) if each.version == network.version):
        return True
    if isinstance(meant, ipaddress.IPv6Address) and meant not in _GLOBAL_UNICAST:
        return False
    return meant.is_global and not meant.is_multicast


def connect(target: tuple[str, int], timeout_s: float, networks: Sequence[Network]) -> socket.socket:
    """A connection to an allowed address of a host. Raises `Forbidden` where it has none, and OSError."""
    host, port = target
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    good = [each for each in found if is_allowed(str(each[4][0]), networks)]
    if not good:
        raise Forbidden(host)
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in good[:_MOST_TRIED]:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout_s)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
            continue
        return connection
    raise failure


def require_for_proxy(host: str, networks: Sequence[Network]) -> None:
    """Judge what a proxy is asked for by its words alone: the proxy looks its names up. Raises `Forbidden`."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        name = "127.0.0.1"
    try:
        address = str(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        try:
            address = socket.inet_ntoa(socket.inet_aton(name))  # 127.1, 0x7f000001 and the like
        except (OSError, ValueError):
            return
    if not is_allowed(address, networks):
        raise Forbidden(host)


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, where it is of a kind that does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
