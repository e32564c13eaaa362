"""What the host forwards, and whose router advertisements it takes, as the kernel says it. Reads and changes nothing.

A host that forwards IPv6 ignores router advertisements, and loses the addresses and the default route that it has from
them, on each device whose `accept_ra` is not 2 (Documentation/networking/ip-sysctl.rst).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec import Struct

PROC: Final = Path("/proc")
IPV4: Final = "net/ipv4/ip_forward"
IPV6: Final = "net/ipv6/conf/all/forwarding"

_RTF_ADDRCONF: Final = 0x0004_0000
"""A route from a router advertisement: include/uapi/linux/ipv6_route.h."""
_IFA_F_PERMANENT: Final = 0x80
_GLOBAL: Final = 0
"""The scope of an address that is good beyond its link."""
_HEARS: Final = "1"
_HEARS_ALWAYS: Final = "2"


class Routing(Struct, frozen=True):
    """What a host does with packets that are not its own."""

    ipv4: bool | None
    """Whether it forwards IPv4; None where that cannot be told."""
    ipv6: bool | None
    """Whether it forwards IPv6; None where it has no IPv6."""
    hearing: tuple[str, ...]
    """Devices with addresses or a default route from router advertisements, which they hear only while the host does
    not forward."""


def routing(proc: Path = PROC) -> Routing:
    """What the host does now, in the network namespace of this thread."""
    hearing = tuple(name for name in advertised(proc) if value(accept_ra(name), proc) == _HEARS)
    return Routing(_is_on(IPV4, proc), _is_on(IPV6, proc), hearing)


def wanted(seen: Routing, *, also: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The settings with which the host forwards and stays reachable: their paths below /proc/sys, and their values.

    The order counts: the devices that hear router advertisements, and `also` those, come before what would make
    them deaf, which cuts them off at once.
    """
    heard = [(accept_ra(name), _HEARS_ALWAYS) for name in sorted({*seen.hearing, *also})]
    families = [(IPV4, seen.ipv4), (IPV6, seen.ipv6)]
    return [*(heard if seen.ipv6 is not None else ()), *((path, "1") for path, on in families if on is not None)]


def accept_ra(device: str) -> str:
    """The path below /proc/sys of what a device does with router advertisements."""
    return f"net/ipv6/conf/{device}/accept_ra"


def written(path: str) -> str:
    """The name of a setting, as people and sysctl(8) write it: with slashes where a device has a dot in its name."""
    return path if "." in path else path.replace("/", ".")


def value(path: str, proc: Path = PROC) -> str | None:
    """The value of a setting; None where there is none, or where it may not be read."""
    try:
        return (proc / "sys" / path).read_text().strip()
    except OSError:
        return None


def advertised(proc: Path = PROC) -> list[str]:
    """The devices that have a default route or an address, beyond the link, from router advertisements; by name."""
    found = set()
    for line in _lines(proc / "thread-self/net/ipv6_route"):
        # Destination, its length, source, its length, next hop, metric, references, uses, flags, device.
        to, bits, *_, flags, device = line.split()
        if int(to, 16) == 0 and int(bits, 16) == 0 and int(flags, 16) & _RTF_ADDRCONF:
            found.add(device)
    for line in _lines(proc / "thread-self/net/if_inet6"):
        _, _, _, scope, flags, device = line.split()
        if int(scope, 16) == _GLOBAL and not int(flags, 16) & _IFA_F_PERMANENT:
            found.add(device)
    return sorted(found)


def _is_on(path: str, proc: Path) -> bool | None:
    found = value(path, proc)
    return None if found is None else found != "0"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
