"""SIGKILL of the real node at every step of its groups and forwards on the host.

After each kill the node is started again. Then the kernel has what its log compiles to, chain by chain and element by
element, and two guests whose flow is established, by a rule or because it was kept, have lost no frame of it. The
ordinary run tries some of the calls; `just kills` all.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aetherscale.actors.network.model.ruleset import Ruleset
from tests.integration.conftest import MakeNode
from tests.support.compiled_log import in_kernel, listed_of, of_log
from tests.support.eventually import asked_until
from tests.support.network_namespaces import missing
from tests.support.network_stories import MOST_S, Steps, Story, every_kill, vm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]

SAMPLE = (("before apply_rules", 4), ("before apply_group", 5))
"""Those are the steps `narrow` and `keep`, whose flow has to outlive a start that knows the new rules already."""
REACHED = ("after rules", "after apply_group", "after apply_rules", "after remove_group", "after restore")
STEPS: Steps = (
    ("lab", "network.create-network", {"name": "lab", "kind": "nat", "ipv4-prefix": "10.9.8.0/24"}),
    ("http", "firewall.create-group", {"name": "http", "rules": ["in:tcp:80", "in:udp:4000"]}),
    ("admin", "firewall.create-group", {"name": "admin", "rules": ["in:tcp:22:from=group/http", "in:udp:4000"]}),
    ("ssh", "firewall.create-group", {"name": "ssh", "rules": ["in:tcp:22"]}),
    ("web", "compute.create-vm", vm("web", "lab", groups=["http"])),
    ("db", "compute.create-vm", vm("db", "lab")),
    ("talk", "", {}),
    ("attach", "firewall.attach-group", {"vm-id": "db", "group": "admin"}),
    ("out", "firewall.set-rules", {"group": "http", "rules": ["in:tcp:80", "in:udp:4000", "out:udp:53,4000"]}),
    ("forward", "firewall.add-forward", {"vm-id": "web", "host-port": 8080, "guest-port": 80}),
    ("restart", "", {}),
    ("more", "firewall.attach-group", {"vm-id": "db", "group": "ssh"}),
    # What web has begun goes on because it is kept.
    ("narrow", "firewall.detach-group", {"vm-id": "db", "group": "admin", "keep-established": True}),
    ("wide", "firewall.attach-group", {"vm-id": "db", "group": "admin"}),
    # And from here on it is kept again.
    ("keep", "firewall.set-rules", {"group": "admin", "rules": ["in:tcp:23"], "keep-established": True}),
    ("again", "", {}),
    ("hush", "", {}),
    # A change of the VM's rules that does not keep what was kept ends it.
    ("unforward", "firewall.remove-forward", {"vm-id": "web", "host-port": 8080}),
    ("detach", "firewall.detach-group", {"vm-id": "db", "group": "admin"}),
    ("unweb", "compute.delete-vm", {"vm-id": "web", "kill": True}),
    ("undb", "compute.delete-vm", {"vm-id": "db", "kill": True}),
    ("unssh", "firewall.delete-group", {"group": "ssh"}),
    ("unadmin", "firewall.delete-group", {"group": "admin"}),
    ("unhttp", "firewall.delete-group", {"group": "http"}),
    ("unlab", "network.delete-network", {"network": "lab"}),
)


class OfRules(Story):
    """The life of two groups and a forward, while two VMs that they are about talk."""

    steps = STEPS

    async def settled(self, moment: str) -> None:
        differing: list[str] = []
        compiled: list[tuple[Ruleset, list[str]]] = []

        async def is_so() -> bool:
            wanted = await of_log(self._node.state_dir / "events.db")
            if not wanted.networks:
                # The tables go with the last network.
                return True
            if not compiled or compiled[-1][0] != wanted:
                compiled.append((wanted, listed_of(wanted)))
            one, other = compiled[-1][1], in_kernel()
            differing[:] = [f"missing: {each}" for each in one if each not in other]
            differing.extend(f"left over: {each}" for each in other if each not in one)
            return not differing

        try:
            await asked_until(is_so, MOST_S)
        except TimeoutError:
            raise AssertionError("\n".join([f"{moment}: the kernel is not what the log says", *differing])) from None


async def test_after_a_kill_between_any_two_steps_the_kernel_is_what_the_log_compiles_to(
    make_node: MakeNode, tmp_path: Path
) -> None:
    await every_kill(make_node, tmp_path, OfRules, SAMPLE, REACHED)
