"""What the firewall has to know of a network and of a port, all of it safe to write into its text."""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from itertools import pairwise
from typing import Final, Literal, get_args

from msgspec import Struct

from aetherscale.actors.network.model.effects import OF_HOST, NetworkKind

TAP: Final = re.compile(r"aep[0-9a-f]{12}")
"""The device names of our taps; ASCII, 15 bytes."""
BRIDGE: Final = re.compile(r"aeb[0-9a-f]{12}")
"""The device names of our bridges; ASCII, 15 bytes."""
BRIDGE_OF_HOST: Final = re.compile(r"(?!aep|aeb)[A-Za-z][A-Za-z0-9_.-]{0,14}")
"""The device names of bridges that the host has of its own. None is written into a rule."""
MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
GROUP: Final = re.compile(r"[0-9a-f]{16}")
"""The ids of groups; ASCII."""


class NetworkRules(Struct, frozen=True):
    """What the firewall has to know of a network. `ipv4` is the network of its guests, `ipv6` their /64; None for none.

    ValueError: a bridge's name that is not of the kind's pattern, or an address that is not what it has to be.
    """

    bridge: str
    kind: NetworkKind
    ipv4: IPv4Network | None = None
    ipv6: IPv6Network | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(NetworkKind):
            raise ValueError(f"a network is isolated, nat, bridged or public, not {self.kind!r}")
        _check_name("a bridge", self.bridge, BRIDGE_OF_HOST if self.is_of_host else BRIDGE)
        _check_type("the IPv4 network", self.ipv4, IPv4Network, optional=True)
        _check_type("the IPv6 prefix", self.ipv6, IPv6Network, optional=True)

    @property
    def is_of_host(self) -> bool:
        """Whether it is a bridge of the host, where others give out the addresses."""
        return self.kind in OF_HOST


class ForwardRules(Struct, frozen=True):
    """What the firewall has to know of a forward to a port. `address` is the host's; None for all, of both families.

    ValueError: another protocol, a port that is none, or an address of a zone.
    """

    protocol: Literal["tcp", "udp"]
    address: IPv4Address | IPv6Address | None
    host_port: int
    guest_port: int
    begins: bool = True
    """Whether it leads what begins. Otherwise it is gone, and what it has led goes on."""

    def __post_init__(self) -> None:
        if self.protocol not in ("tcp", "udp"):
            raise ValueError(f"what is forwarded is tcp or udp, not {self.protocol!r}")
        _check_type("the address of a forward", self.address, IPv4Address, IPv6Address, optional=True)
        for number in (self.host_port, self.guest_port):
            if type(number) is not int or not 0 < number < 65536:
                raise ValueError(f"{number!r} is no port")


class PortRules(Struct, frozen=True):
    """What the firewall has to know of a port: who it is, and so what it may send.

    `mac` is lower case, with colons. `ipv6` has every address that the port may use, the link-local one too. `allowed`
    are networks that it may send from besides, as a router or a host of containers does.
    `groups` are the ids of the groups that it bears, in order; a port without takes anything from its own network.
    `forwards` lead to it where its network is of the kind `nat`.

    ValueError: a device's name or MAC that is not of the pattern, an address that no host can have, or one of a zone.
    """

    tap: str
    bridge: str
    mac: str
    ipv4: IPv4Address | None = None
    ipv6: tuple[IPv6Address, ...] = ()
    allowed: tuple[IPv4Network | IPv6Network, ...] = ()
    groups: tuple[str, ...] = ()
    forwards: tuple[ForwardRules, ...] = ()

    def __post_init__(self) -> None:
        _check_name("a tap", self.tap, TAP)
        _check_name("a bridge", self.bridge, BRIDGE if str(self.bridge).startswith("aeb") else BRIDGE_OF_HOST)
        _check_name("a MAC", self.mac, MAC)
        if int(self.mac[:2], 16) & 1 or self.mac == "00:00:00:00:00:00":
            raise ValueError(f"{self.mac} is not the MAC of one device")
        _check_type("the IPv4 address", self.ipv4, IPv4Address, optional=True)
        for address in self.ipv6:
            _check_type("an IPv6 address", address, IPv6Address)
        for own in (*self.ipv6, *([self.ipv4] if self.ipv4 else ())):
            if own.is_unspecified or own.is_multicast or own.is_loopback:
                raise ValueError(f"no port can have the address {own}")
        for network in self.allowed:
            _check_type("an allowed network", network, IPv4Network, IPv6Network)
        for group_id in self.groups:
            _check_name("a group", group_id, GROUP)
        if any(one >= other for one, other in pairwise(self.groups)):
            raise ValueError(f"the groups {self.groups} are not in order")


def _check_name(what: str, name: object, pattern: re.Pattern[str]) -> None:
    if type(name) is not str or not name.isascii() or not pattern.fullmatch(name):
        raise ValueError(f"{what} is called by {pattern.pattern}, not {name!r}")


def _check_type(what: str, value: object, *types: type, optional: bool = False) -> None:
    if value is None and optional:
        return
    if type(value) not in types:
        raise ValueError(f"{what} is {value!r}, not of {types}")
    zone = getattr(value, "scope_id", None) or getattr(getattr(value, "network_address", None), "scope_id", None)
    if zone is not None:
        raise ValueError(f"{what} is of a zone: {value!r}")
