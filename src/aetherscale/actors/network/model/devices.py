"""Which devices of the host are ours, and what they are called. Pure.

A device is ours by its alias (IFLA_IFALIAS), `aetherscale <node> <kind> <id>`, which `ip link` shows. Its name follows
from the id, in the 15 bytes that the kernel has for it (IFNAMSIZ - 1), and begins with what rules can tell our taps by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal, cast

from msgspec import Struct

from aetherscale.kernel.names import ID_PATTERN, NAME_PATTERN, derive_id

BRIDGE_PREFIX: Final = "aeb"
TAP_PREFIX: Final = "aep"
SERVICE_PREFIX: Final = "aes"
ROUTER_PREFIX: Final = "aer"

AliasKind = Literal["network", "port", "resolver"]
"""What a device is for: the bridge of a network, the tap of a port, or a cable to the resolver of a network."""

_GROUPS: Final = 0x4000_0000
"""Link groups of ours begin here, and those that are formed for one removal alone at `_BATCHES`."""
_BATCHES: Final = 0x5000_0000
_DIGITS: Final = 12

_ALIAS: Final = re.compile(
    rf"aetherscale (?P<node>{NAME_PATTERN.removeprefix(chr(92) + 'A').removesuffix(chr(92) + 'Z')}) "
    rf"(?P<kind>network|port|resolver) (?P<id>{ID_PATTERN.removeprefix(chr(92) + 'A').removesuffix(chr(92) + 'Z')})"
)


class Alias(Struct, frozen=True):
    """Whose a device is."""

    node: str
    kind: AliasKind
    id: str
    """The id of the network, or of the port; a resolver has that of its network."""

    def __str__(self) -> str:
        return f"aetherscale {self.node} {self.kind} {self.id}"


class Link(Struct, frozen=True):
    """A network device, as the kernel has it."""

    index: int
    name: str
    kind: str
    """`bridge`, `tun` (a tap as well), `veth`; "" for a device of hardware and for the loopback."""
    alias_text: str
    """Its alias as it is, whoever gave it; "" for none."""
    mac: str
    mtu: int
    """Bytes."""
    master: int
    """The index of the bridge that it is a port of; 0 for none."""
    group: int
    is_up: bool
    """Whether it was set up, with or without a carrier."""
    settings: Mapping[int, bytes] = {}
    """What matters of how a bridge, or a port of a bridge, is set, by the attributes of the kernel."""

    @property
    def alias(self) -> Alias | None:
        """Whose it is; None where that is not one of us."""
        return parse_alias(self.alias_text)


def parse_alias(text: str) -> Alias | None:
    """The alias of a device of ours; None for any other text, however much alike."""
    found = _ALIAS.fullmatch(text)
    return found and Alias(found["node"], cast(AliasKind, found["kind"]), found["id"])


@lru_cache(4096)
def bridge_name(network_id: str) -> str:
    """The name of a network's bridge."""
    return BRIDGE_PREFIX + derive_id("bridge", network_id)[-_DIGITS:]


def service_name(network_id: str) -> str:
    """The name of the cable from a network's bridge to its resolver."""
    return SERVICE_PREFIX + derive_id("service", network_id)[-_DIGITS:]


def advertiser_name(network_id: str) -> str:
    """The name of the cable by which the resolver of a network advertises the host's router."""
    return ROUTER_PREFIX + derive_id("router", network_id)[-_DIGITS:]


def tap_name(vm_id: str, index: int) -> str:
    """The name of the tap of a VM's port, which are counted from 0."""
    return TAP_PREFIX + derive_id("tap", vm_id, str(index))[-_DIGITS:]


def group_of(owner_id: str) -> int:
    """The link group (IFLA_GROUP) of the taps that are removed together: those of a VM or of a network."""
    return _GROUPS | int(derive_id("group", owner_id)[-7:], 16)


def is_group(number: int) -> bool:
    """Whether taps can be in it for as long as they live."""
    return _GROUPS <= number < _BATCHES


def batch_group(node: str, count: int) -> int:
    """A link group for one removal of taps by a node, which are counted."""
    return _BATCHES | int(derive_id("batch", node)[-4:], 16) << 12 | count & 0xFFF
