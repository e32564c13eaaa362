"""`firewall explain`: what a node says now, and what its log says of a moment in the past."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import good, simulated_node, told

pytestmark = pytest.mark.integration

ENDS = ("firewall", "explain", "--from", "192.0.2.7", "--to", "host", "--port", "tcp/8080")


async def test_what_passed_is_told_of_each_moment(make_node: MakeNode, tmp_path: Path) -> None:
    node = await simulated_node(make_node, tmp_path)
    await good(node, "network", "create", "lab", "--kind", "nat")
    await good(node, "vm", "create", "web", "--image", "blank", "--network", "lab")
    await good(node, "firewall", "group", "create", "http", "--allow", "in:tcp:80")
    await good(node, "firewall", "forward", "add", "web", "8080:80")
    closed = (await told(node, "events", "list"))[-1]["seq"]
    assert not (await told(node, *ENDS))["passes"]
    await good(node, "firewall", "attach", "web", "http")
    live = await told(node, *ENDS)
    assert (live["passes"], live["rule"], live["forward"]) == (True, "in:tcp:80", "8080:80/tcp")
    text = await good(node, *ENDS)
    assert text == (
        "tcp/80 from 192.0.2.7 to web, where the forward 8080:80/tcp leads, passes by the rule in:tcp:80.\n"
        "The group 'http' allows it.\n"
    )
    await good(node, "vm", "delete", "web", "--kill")
    with_web = (await told(node, "events", "list", "--type", "VmDeleteRequested"))[-1]["seq"] - 1
    await node.stop()
    assert not (await told(node, *ENDS, "--at", str(closed)))["passes"]
    past = await told(node, *ENDS, "--at", str(with_web))
    assert past.items() <= {**live, "type": "result"}.items()
    status, _, err = await node.cli(
        "firewall", "explain", "--from", "web", "--to", "host", "--port", "icmp", "--at", "1"
    )
    assert (status, "no such VM: 'web'" in err) == (3, True)
    assert re.search(r"at event 1 there was none; what there was: aetherscale (--\S+ \S+ )*replay --at 1\n", err), err
