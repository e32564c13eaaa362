"""The rules of a node's log, and those that its kernel has: the two have to be the same, chain by chain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from aetherscale.actors.compute.reconcile import ports_of, rules_of
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model.chains import NOTE
from aetherscale.actors.network.model.groups import compile_group
from aetherscale.actors.network.model.ruleset import Ruleset, replace_all
from aetherscale.actors.network.nft.nftables import Nftables
from aetherscale.components import kinds
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.sqlite import open_access
from aetherscale.kernel.registry import Registry, apply, event_types
from tests.support.firewalled import listed, own_namespace


async def of_log(path: Path) -> Ruleset:
    """compile(log): the rules that the kernel is to have."""
    reader = LogReader(await open_access(path), Codec(event_types(kinds())).decoding)
    try:
        registries: dict[str, Registry[Any]] = {kind.name: Registry() for kind in kinds()}
        for recorded in await reader.read(0, 1_000_000):
            for kind in kinds():
                apply(kind, registries[kind.name], recorded)
    finally:
        await reader.close()
    states = {
        name: {each.state.id: each.state for each in registry.aggregates.values()}
        for name, registry in registries.items()
    }
    known = Known()
    known.set_networks({each.id: each.spec for each in states["network"].values() if each.phase != "deleted"})
    there = [each for each in states["group"].values() if each.phase not in ("deleting", "deleted")]
    known.set_groups({each.id: compile_group(each.standing) for each in there})
    ports, rules = ports_of(states["vm"]), rules_of(states["vm"])
    known.set_rules(rules)
    known.set_ports(ports)
    return known.rules()


def listed_of(ruleset: Ruleset) -> list[str]:
    """How a kernel lists these rules."""
    with own_namespace():
        nft = Nftables()
        try:
            nft.run(replace_all(ruleset))
            return _blocks(nft)
        finally:
            nft.close()


def in_kernel() -> list[str]:
    """What the kernel has, in the network namespace of this thread."""
    nft = Nftables()
    try:
        return _blocks(nft)
    finally:
        nft.close()


def _blocks(nft: Nftables) -> list[str]:
    """Chain by chain and set by set, in order, but for the flows and the note of how it was made."""
    text = "\n".join(listed(nft))
    text = re.sub(rf"(set {NOTE} \{{[^}}]*?)elements = \[[^\n]*", r"\1", text)
    tables = re.split(r"\n(?=table )", "\n" + text)
    ours = [table for table in tables if re.search(r"table \w+ aetherscale \{", table)]
    return sorted(block.strip() for table in ours for block in re.split(r"\n(?=(?:table|chain|set|map) |\})", table))
