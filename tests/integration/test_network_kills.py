"""SIGKILL of the real node at every call of its networks' driver and at every step of it on the host.

After each kill the node is started again. Then there is on the host what the state says and nothing else, and two
guests that had a connection have lost no frame of it. The ordinary run tries some of the calls; `just kills` all.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.network_namespaces import missing
from tests.support.network_stories import Steps, Story, every_kill, vm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]

SAMPLE = (("after link made", 1), ("after tap kept", 1), ("after close_ports", 1))
REACHED = ("after rules", "after tap made", "after tap kept", "after link set", "before restore")

STEPS: Steps = (
    ("lab", "network.create-network", {"name": "lab", "kind": "nat", "ipv4-prefix": "10.9.8.0/24"}),
    ("web", "compute.create-vm", vm("web", "lab")),
    ("db", "compute.create-vm", vm("db", "lab")),
    ("talk", "", {}),
    ("other", "network.create-network", {"name": "other", "ipv4-prefix": "10.9.9.0/24"}),
    ("cache", "compute.create-vm", vm("cache", "lab", "other")),
    ("stop", "compute.stop-vm", {"vm-id": "cache", "kill": True}),
    ("restart", "", {}),
    ("start", "compute.start-vm", {"vm-id": "cache"}),
    ("uncache", "compute.delete-vm", {"vm-id": "cache", "kill": True}),
    ("unother", "network.delete-network", {"network": "other"}),
    ("hush", "", {}),
    ("unweb", "compute.delete-vm", {"vm-id": "web", "kill": True}),
    ("undb", "compute.delete-vm", {"vm-id": "db", "kill": True}),
    ("unlab", "network.delete-network", {"network": "lab"}),
)


class OfNetworks(Story):
    """The life of two networks and three VMs."""

    steps = STEPS


async def test_a_node_that_is_killed_at_any_call_of_networks_leaves_what_the_state_says(
    make_node: MakeNode, tmp_path: Path
) -> None:
    await every_kill(make_node, tmp_path, OfNetworks, SAMPLE, REACHED)
