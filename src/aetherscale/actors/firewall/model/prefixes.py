"""The prefixes that rules are about. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

Prefix = IPv4Network | IPv6Network

EXPECTED: Final = "an address or a prefix, as 10.0.0.0/8 or fd00::/8"

# No zone, which is a matter of one host, and no mask: a text that matches has one meaning or none.
_FORM: Final = re.compile(r"[0-9.]{7,15}(?:/[0-9]{1,2})?|[0-9a-fA-F:.]{2,45}(?:/[0-9]{1,3})?")

_NO_HOSTS: Final[dict[Prefix, str]] = {
    IPv4Network("0.0.0.0/32"): "the unspecified address",
    IPv4Network("127.0.0.0/8"): "loopback addresses",
    IPv4Network("224.0.0.0/4"): "multicast addresses",
    IPv4Network("240.0.0.0/4"): "reserved addresses",
    IPv6Network("::/128"): "the unspecified address",
    IPv6Network("::1/128"): "the loopback address",
    IPv6Network("::ffff:0:0/96"): "IPv4-mapped addresses",
    IPv6Network("ff00::/8"): "multicast addresses",
}
"""No VM has any of them, nor has what it speaks with: a rule about them would allow nothing."""


class NotAPrefix(ValueError):
    """What a text had to be instead."""


def parse(text: str) -> Prefix:
    """The prefix that a text is, an address being one of its full length. Raises `NotAPrefix`."""
    try:
        prefix = ip_network(text, strict=False) if _FORM.fullmatch(text) else None
    except ValueError:
        prefix = None
    if prefix is None:
        raise NotAPrefix(EXPECTED)
    for special, what in _NO_HOSTS.items():
        if prefix.version == special.version and prefix.subnet_of(special):  # type: ignore[arg-type]
            raise NotAPrefix(f"a prefix of other than {what} ({special})")
    if ip_network(text.partition("/")[0]).network_address != prefix.network_address:
        raise NotAPrefix(f"no bit set behind the prefix, as {prefix}")
    return prefix
