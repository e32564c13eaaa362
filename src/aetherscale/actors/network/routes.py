"""The routes of the host, as the kernel lists them in /proc: asked in the middle of a decision, so at once."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Final

from aetherscale.actors.network.model.addresses import Prefix
from aetherscale.actors.network.model.devices import BRIDGE_PREFIX

# Of the thread: a network namespace may be of one alone.
_IPV4: Final = Path("/proc/thread-self/net/route")
_IPV6: Final = Path("/proc/thread-self/net/ipv6_route")
_LINK_LOCAL: Final = IPv6Network("fe80::/10")


def host_routes() -> dict[Prefix, str]:
    """The prefixes that the host has routes to, each with the device that it leads to; empty where it has none.

    Of the main table; default routes and those of our own bridges are left out.
    """
    found: dict[Prefix, str] = {}
    found.update(_ipv4_routes())
    found.update(_ipv6_routes())
    return {
        prefix: device
        for prefix, device in found.items()
        if prefix.prefixlen > 0 and not device.startswith(BRIDGE_PREFIX)
    }


def default_device() -> str:
    """The device that leads the host to the world, by the first of its default routes; "" for none."""
    found: list[tuple[Prefix, str]] = [*_ipv4_routes(), *_ipv6_routes()]
    return next((device for prefix, device in found if prefix.prefixlen == 0 and device != "lo"), "")


def is_of_host(address: str) -> bool:
    """Whether an address is one of the host's own, or that of a router that it sends to."""
    return ip_address(address) in _routers() or has_address(address)


def has_address(address: str) -> bool:
    """Whether an address is one of the host's own."""
    wanted = ip_address(address)
    with socket.socket(socket.AF_INET if wanted.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _routers() -> Iterator[IPv4Address | IPv6Address]:
    for line in _lines(_IPV4)[1:]:
        yield IPv4Address(struct.pack("=I", int(line.split()[2], 16)))
    for line in _lines(_IPV6):
        yield IPv6Address(int(line.split()[4], 16))


def _ipv4_routes() -> Iterator[tuple[IPv4Network, str]]:
    """Destination and mask are hexadecimal numbers in the host's byte order: proc(5)."""
    for line in _lines(_IPV4)[1:]:
        device, destination, _, _, _, _, _, mask = line.split()[:8]
        address, bits = (IPv4Address(struct.pack("=I", int(text, 16))) for text in (destination, mask))
        yield IPv4Network((int(address), int(bits).bit_count())), device


def _ipv6_routes() -> Iterator[tuple[IPv6Network, str]]:
    """Destination and length of its prefix are hexadecimal, in the network's order. Those of single local addresses,
    of multicast and of link-local addresses lie in no prefix that a network can have.
    """
    for line in _lines(_IPV6):
        fields = line.split()
        prefix = IPv6Network((int(fields[0], 16), int(fields[1], 16)))
        if not prefix.is_multicast and not prefix.subnet_of(_LINK_LOCAL) and fields[9] != "lo":
            yield prefix, fields[9]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        # The kernel has no IPv6, or was told to do without.
        return []
