"""A node whose network is a bridge of the host, which another program takes away: what its user is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.behind import do
from tests.support.cli import MakeNode, good, told
from tests.support.eventually import asked_until
from tests.support.network_namespaces import missing, network_namespace

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]


async def test_a_node_and_its_doctor_say_that_a_bridge_of_the_host_is_gone(make_node: MakeNode, tmp_path: Path) -> None:
    with network_namespace():
        await do(
            "ip link set lo up; ip link add br0 type bridge; ip link set br0 up; "
            "ip link add card0 type veth peer name far0"
        )
        node = make_node()
        await node.start()
        status, _, err = await node.cli("network", "create", "cards", "--kind", "bridged", "--bridge", "card0")
        assert (status != 0, "card0 of the host is no bridge" in err) == (True, True), err
        await good(node, "network", "create", "office", "--kind", "bridged", "--bridge", "br0")
        (tmp_path / "blank.img").write_bytes(bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512))
        await good(node, "image", "import", str(tmp_path / "blank.img"), "--ready", "none")
        await good(node, "vm", "create", "web", "--image", "blank", "--memory", "128M", "--network", "office")
        assert (await told(node, "vm", "show", "web"))["cut"] == []
        _, out, _ = await node.cli("doctor")
        assert f"{node.name} answers, and all is well with it" in out

        async def phase() -> str:
            return str((await told(node, "network", "show", "office"))["phase"])

        async def is_restoring() -> bool:
            return await phase() == "restoring"

        async def is_ready() -> bool:
            return await phase() == "ready"

        await do("ip link del br0")
        await asked_until(is_restoring)
        _, out, _ = await node.cli("doctor")
        assert "network office is restoring: the bridge br0 is gone" in " ".join(out.split())
        assert f"{node.name} answers" in out
        assert "all is well with it" not in out
        vm = await told(node, "vm", "show", "web")
        assert vm["cut"] == [vm["ports"][0]["tap"]]
        _, _, hint = await node.cli("vm", "show", "web")
        assert "the VM is cut off the network office: the bridge br0 is gone; the network is being restored" in hint
        assert "vm restart" not in hint
        await do("ip link add br0 type bridge; ip link set br0 up")
        await asked_until(is_ready)
        assert "the bridge br0 was made anew" in await good(node, "why", "network", "office")
        assert (await told(node, "vm", "show", "web"))["cut"] == []
        await good(node, "vm", "delete", "web", "--kill")
        await node.close()
