"""Ports of the host that lead to a guest with user-mode networking, as callers write them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from typing import Final

from aetherscale.actors.compute.model.effects import Forward, PublishedPort
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.rules import shown

FIELD: Final = "publish"
DEFAULT_ADDRESS: Final = "127.0.0.1"
"""A port is open to the host alone unless the caller names an address."""
LAST_PORT: Final = 65535

_FORM: Final = re.compile(
    r"(?:(?P<address>[^/]*):)?(?P<host>[0-9]{1,20}):(?P<guest>[0-9]{1,20})(?:/(?P<protocol>[a-z]{1,8}))?", re.ASCII
)
_EXAMPLE: Final = "[ADDRESS:]HOST-PORT:GUEST-PORT[/tcp|/udp], as 8080:80"


def parse_published(texts: Sequence[str], *, host_loopback: bool) -> list[PublishedPort]:
    """The ports that a VM is to have published, in the order that they were given.

    Raises `Refused` (bad request), which names the field, for anything that is not of the form, for one port of the
    host given twice, and for a port of UDP on the host's loopback, unless the guest is to reach that.
    """
    published: list[PublishedPort] = []
    for text in texts:
        port = _parsed(text)
        if any(host_port_key(port) == host_port_key(other) for other in published):
            raise _bad(f"the port {port.host_port}/{port.protocol} of the host is given twice")
        if port.protocol == "udp" and IPv4Address(port.address).is_loopback and not host_loopback:
            raise _bad(
                f"UDP on {port.address} would get no answer: the guest does not reach the host's loopback",
                f"name another address of the host, as 0.0.0.0:{port.host_port}:{port.guest_port}/udp",
            )
        published.append(port)
    return published


def host_port_key(port: PublishedPort | Forward) -> str:
    """The key that a port of the host is reserved by. It has no address: one that is open on all of them needs each."""
    return f"{port.protocol}-{port.host_port}"


def parse_host_address(text: str, field: str) -> str:
    """The address of the host that a forward is about, in its canonical form; "" for all of them.

    Raises `Refused` (bad request) for what no host can be reached at from elsewhere.
    """
    if not text:
        return ""
    try:
        address = ip_address(text)
    except ValueError:
        raise _no_address(text, field) from None
    is_mapped = address.version == 6 and (address.ipv4_mapped is not None or address.scope_id is not None)
    never = (address.is_loopback, address.is_multicast, address.is_link_local, address.is_reserved, is_mapped)
    # Nor is 0.0.0.0 all of them, which are of both families.
    if any(never) or int(address) < 1 << 24:
        raise _no_address(text, field)
    return str(address)


def _no_address(text: str, field: str) -> Refused:
    return Refused(
        Reason.BAD_REQUEST,
        f"got {shown(text)}, expected an address of the host that others reach it at, IPv4 or IPv6, or none for all",
        field=field,
    )


def written(port: PublishedPort) -> str:
    """The port as a caller would write it."""
    return f"{port.address}:{port.host_port}:{port.guest_port}/{port.protocol}"


def _parsed(text: str) -> PublishedPort:
    found = _FORM.fullmatch(text)
    if found is None:
        raise _bad(f"got {shown(text)}, expected {_EXAMPLE}")
    address = _address(text, found["address"])
    host_port, guest_port = _number(text, found["host"]), _number(text, found["guest"])
    match found["protocol"]:
        case None | "tcp":
            return PublishedPort("tcp", address, host_port, guest_port)
        case "udp":
            return PublishedPort("udp", address, host_port, guest_port)
        case _:
            raise _bad(f"got {shown(text)}, expected the protocol tcp or udp")


def _address(text: str, address: str | None) -> str:
    try:
        parsed = IPv4Address(DEFAULT_ADDRESS if address is None else address)
    except ValueError:
        raise _bad(f"got {shown(text)}, expected an IPv4 address of the host before the ports, as 0.0.0.0") from None
    # 0.0.0.0 is all addresses; the rest of its block, and what is reserved, is none.
    if parsed.is_multicast or parsed.is_reserved or (int(parsed) < 1 << 24 and int(parsed) != 0):
        raise _bad(f"got {shown(text)}, expected an address that a host can have, or 0.0.0.0 for all")
    return str(parsed)


def _number(text: str, digits: str) -> int:
    number = int(digits)
    if not 1 <= number <= LAST_PORT:
        raise _bad(f"got {shown(text)}, expected ports from 1 to {LAST_PORT}")
    return number


def _bad(message: str, remedy: str = "") -> Refused:
    return Refused(Reason.BAD_REQUEST, message, field=FIELD, remedy=remedy)
