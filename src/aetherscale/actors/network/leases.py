"""The leased addresses of ports, kept when the tables that have learnt them are replaced, or flushed by others.

They are read from the kernel before each replacement and on the timer. One that was learnt after the last look is lost
with a flush; the guest leases it again.
"""

from __future__ import annotations

from collections.abc import Container
from ipaddress import IPv4Address

from aetherscale.actors.network.model.leases import LASTS, LEASED
from aetherscale.actors.network.model.marks import TABLE
from aetherscale.actors.network.nft.flows import FlowReader


class Leases:
    """In the network namespace of the thread that makes it. Every method may be called by any thread, one at a time."""

    def __init__(self) -> None:
        """OSError: there are no descriptors left."""
        self._reader = FlowReader()
        self._known: set[tuple[str, IPv4Address]] = set()

    def look(self) -> None:
        """Know what the tables have learnt. OSError: they cannot be read."""
        self._known.update(self._reader.read_leases())

    def of(self, tap: str) -> list[IPv4Address]:
        """The addresses that were leased to a port, as of the last look."""
        return sorted(address for known, address in self._known if known == tap)

    def text(self, taps: Container[str]) -> str:
        """What has tables that were made anew know them again, of these taps; those of others are forgotten."""
        self._known = {each for each in self._known if each[0] in taps}
        elements = ", ".join(f'"{tap}" . {int(address):#010x} timeout {LASTS}' for tap, address in sorted(self._known))
        return f"add element bridge {TABLE} {LEASED} {{ {elements} }}\n" if elements else ""

    def close(self) -> None:
        """Let go. The tables stay."""
        self._reader.close()
