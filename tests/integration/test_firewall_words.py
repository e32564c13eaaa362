"""What the commands of `firewall` say of groups and forwards, on a node with simulated guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import good, simulated_node, told
from tests.support.node import RunningNode

pytestmark = pytest.mark.integration


async def bearing(node: RunningNode) -> str:
    """The VM `web` in a network that leads out bears the group `http`, which `db` names; the id of the group."""
    await good(node, "network", "create", "lab", "--kind", "nat")
    await good(node, "firewall", "group", "create", "http", "--allow", "in:tcp:80")
    await good(node, "firewall", "group", "create", "db", "--allow", "in:tcp:5432:from=group/http")
    await good(node, "vm", "create", "web", "--image", "blank", "--network", "lab", "--group", "http")
    group_id: str = (await told(node, "firewall", "group", "show", "http"))["id"]
    return group_id


async def test_who_bears_a_group_and_who_names_it(make_node: MakeNode, tmp_path: Path) -> None:
    node = await simulated_node(make_node, tmp_path)
    group_id = await bearing(node)
    shown = dict(line.split(None, 1) for line in (await good(node, "firewall", "group", "show", "http")).splitlines())
    assert (shown["id"], shown["vms"], shown["named-by"]) == (group_id, "web", "db")
    other = await good(node, "firewall", "group", "show", "db")
    assert "vms" not in other
    assert "named-by" not in other
    status, _, err = await node.cli("firewall", "group", "delete", "http", "db")
    assert (status, "in use by 1 group(s): db and 1 VM(s): web" in err) == (1, True)
    assert await told(node, "firewall", "group", "list") != []
    await good(node, "firewall", "detach", "web", "http")
    await good(node, "firewall", "group", "delete", "http")
    assert await told(node, "firewall", "group", "list") == []


async def test_a_group_and_a_network_of_a_new_vm_are_meant_by_the_beginning_of_their_ids(
    make_node: MakeNode, tmp_path: Path
) -> None:
    node = await simulated_node(make_node, tmp_path)
    group_id = await bearing(node)
    network_id = (await told(node, "network", "show", "lab"))["id"]
    words = ("--image", "blank", "--network", network_id[:8], "--group", group_id[:8])
    vm = await told(node, "vm", "create", "db", *words)
    assert [port["network"] for port in vm["ports"]] == ["lab"]
    assert vm["groups"] == [{"group-id": group_id, "group": "http"}]
    status, _, err = await node.cli("vm", "create", "x", "--image", "blank", "--network", "lab", "--group", "000")
    assert (status, "--group: got '000', expected a name, or at least 4 characters of an id" in err) == (2, True)
    status, _, err = await node.cli("vm", "create", "x", "--image", "blank", "--network", "lab", "--group", "0000")
    assert (status, "no group has an id that begins with '0000'" in err) == (3, True)
    assert "aetherscale firewall group list --all" in err


async def test_a_forward_says_where_it_leads_and_what_is_to_be_done_for_it(make_node: MakeNode, tmp_path: Path) -> None:
    node = await simulated_node(make_node, tmp_path)
    await bearing(node)
    assert (await good(node, "firewall", "forward", "add", "web", "8080:80")).startswith(
        "8080/tcp leads to port 80 of web ("
    )
    (forward,) = await told(node, "firewall", "forward", "list")
    assert forward.keys() == {"vm-id", "name", "forward", "let-in", "from", "rule"}
    await good(node, "firewall", "detach", "web", "http")
    status, _, err = await node.cli("firewall", "forward", "add", "web", "8081:81")
    assert status == 0
    attached = "aetherscale firewall group create web --allow in:tcp:81; aetherscale firewall attach web web"
    assert attached in err
    status, _, err = await node.cli("firewall", "forward", "remove", "web", "8082")
    assert (status, "hint: aetherscale firewall forward list web" in err) == (3, True)
