"""What `why` says of a network: what is ensured of it depends on its kind, and more than that is not claimed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.network.model import events
from aetherscale.actors.network.model.effects import NetworkKind, NetworkSpec
from aetherscale.actors.network.model.sentences import describe, summarize
from aetherscale.actors.network.model.state import Network

ISOLATED = "its rules, its bridge and its resolver"
NAT = "its rules, its bridge, the host's addresses in it and its resolver"


def network(kind: NetworkKind, **fields: Any) -> Network:
    spec = NetworkSpec("lab", kind, None, None, "br0" if kind == "bridged" else None)
    return replace(Network("1" * 16, spec, "creating", 0), **fields)


@pytest.mark.parametrize(("kind", "parts"), [("isolated", ISOLATED), ("nat", NAT), ("bridged", "its rules")])
def test_what_was_made_of_a_network_follows_from_its_kind(kind: NetworkKind, parts: str) -> None:
    up = events.NetworkUp("boot")
    assert summarize(network(kind)) == f"{parts} are being made"
    assert describe(network(kind), up).text == f"{parts} were made"
    # Of what was there all the time nothing was made, and a tap may still be gone.
    assert describe(network(kind, phase="restoring"), up).text == f"{parts} were in place again"


def test_what_was_lost_is_said_with_who_did_it_where_that_is_known() -> None:
    ready = network("isolated", phase="ready")
    lost = "a part of it was lost on the host: tables removed"
    assert describe(ready, events.NetworkDown("tables removed", "")).text == lost
    assert describe(ready, events.NetworkDown("tables removed", "nft, pid 8")).text == f"{lost}, by nft, pid 8"
    down = network("isolated", phase="restoring", down="tables removed")
    assert summarize(down) == "it is being mended, since a part of it was lost: tables removed"
