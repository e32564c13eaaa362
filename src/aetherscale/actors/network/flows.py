"""The table of flows in the kernel: made once, not replaced with the rules, and asked what is to go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from msgspec import Struct

from aetherscale.actors.network.model import flows
from aetherscale.actors.network.model.marks import FLOWS_TABLE
from aetherscale.actors.network.nft.flows import Flow, FlowReader
from aetherscale.actors.network.nft.nftables import Nftables, NftError

REMOVE: Final = f"add table bridge {FLOWS_TABLE}\ndelete table bridge {FLOWS_TABLE}\n"
Direction = Literal["in", "out"]
"""Who has begun a flow of a port: others, or the port."""
_OTHER: Final = {"sent": "taken", "taken": "sent"}
_BEGUN: Final[Mapping[str, Direction]] = {"sent": "out", "taken": "in"}
_WITNESS: Final = re.compile(r"\tchain (as_[0-9a-f]{32}) \{\n\t\}\n")
"""An empty chain, whose name is a digest of how the table was made and of how nft lists it."""


Asked = Callable[[Direction, str, Flow], bool]
"""Something of a flow that has begun in this direction, of tcp or udp."""


class Concerned(Struct, frozen=True):
    """Whose flows a change is about: those of taps, and those that others have with these addresses."""

    taps: frozenset[str]
    addresses: frozenset[IPv4Address | IPv6Address]

    def has(self, flow: Flow) -> bool:
        """Whether a flow is one of them."""
        return flow.tap in self.taps or flow.remote in self.addresses


class Flows:
    """In the network namespace of the thread that makes it. Every method may be called by any thread, one at a time."""

    def __init__(self, nft: Nftables) -> None:
        """OSError: there are no descriptors left."""
        self._nft = nft
        self._reader = FlowReader()
        self._keeps = True
        """Whether any flow may be kept: an earlier process may have kept some."""

    def ensure(self, *, forget: bool = False) -> None:
        """Ensure that the table is there as it was made; with `forget`, make it anew, without any flow.

        NftError: nft refuses it.
        """
        if not forget and self._stands():
            return
        self._nft.run(REMOVE + flows.table())
        self._nft.run(f"add chain bridge {FLOWS_TABLE} {_witness(self._listed())}\n")

    def keep(self, concerned: Concerned, allows: Asked, ends: Asked) -> str:
        """A text of nft that lets these flows go on that are allowed and do not end, whatever the rules will say.

        One that an earlier change has cut is not allowed, however long the kernel remembers it; what ends is kept no
        longer. OSError: they cannot be read.
        """
        self._keeps = True
        lines: list[str] = []
        for kind, lasts in flows.KINDS.items():
            have = {what: set(self._reader.read(f"{what}_{kind}")) for what in _OTHER}
            kept = {what: set(self._reader.read(f"kept_{what}_{kind}")) for what in _OTHER}
            for what, other in _OTHER.items():
                # What has ended needs no longer be known; what was kept before is in both sets, and is of one.
                ended = kept[what] - have[other]
                of = _BEGUN[what], kind[:-1]
                new = (flow for flow in have[what] - kept[what] - kept[other] if concerned.has(flow))
                found = {flow for flow in new if allows(*of, flow) and not ends(*of, flow)}
                over = {flow for flow in kept[what] if concerned.has(flow) and ends(*of, flow)}
                ended -= over
                lines += self._forgotten(kind, what, over)
                lines += _commands("delete", f"kept_{what}_{kind}", ended)
                lines += _commands("add", f"kept_{what}_{kind}", found)
                lines += _commands("add", f"{other}_{kind}", found, f" timeout {lasts}")
        return "".join(lines)

    def let_go(self, concerned: Callable[[], Concerned]) -> str:
        """A text of nft that takes back that these were kept. OSError: they cannot be read.

        It is asked who is concerned where anything is kept, which is rare.
        """
        if not self._keeps:
            return ""
        self._keeps = False
        lines: list[str] = []
        for kind in flows.KINDS:
            for what in _OTHER:
                kept = self._reader.read(f"kept_{what}_{kind}")
                self._keeps = self._keeps or bool(kept)
                found = [flow for flow in kept if concerned().has(flow)]
                lines += self._forgotten(kind, what, found)
        return "".join(lines)

    def close(self) -> None:
        """Let go. The table stays."""
        self._reader.close()

    def _forgotten(self, kind: str, what: str, flows_of: Iterable[Flow]) -> list[str]:
        """Commands by which these are no longer kept."""
        found, other = list(flows_of), f"{_OTHER[what]}_{kind}"
        # One may time out meanwhile: what is added first is there to be deleted.
        return [
            *_commands("delete", f"kept_{what}_{kind}", found),
            *_commands("add", other, found),
            *_commands("delete", other, found),
        ]

    def _stands(self) -> bool:
        try:
            listed = self._listed()
        except NftError:
            return False
        found = _WITNESS.search(listed)
        return found is not None and found[1] == _witness(listed.replace(found[0], ""))

    def _listed(self) -> str:
        return self._nft.run(f"list table bridge {FLOWS_TABLE}\n", terse=True)


def _witness(listed: str) -> str:
    lines = [line for line in listed.splitlines() if line]
    return f"as_{sha256('|'.join([flows.table(), *lines]).encode()).hexdigest()[:32]}"


def _commands(verb: str, name: str, found: Iterable[Flow], more: str = "") -> list[str]:
    elements = ", ".join(f"{flow.key()}{more}" for flow in found)
    return [f"{verb} element bridge {FLOWS_TABLE} {name} {{ {elements} }}\n"] if elements else []
