"""What the driver of networks knows of the host around it: its routes, and another node."""

from __future__ import annotations

import asyncio
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from msgspec.structs import replace

from aetherscale.actors.network import needs, removal
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.model.effects import NetworkEnsured
from aetherscale.eventstore.sqlite import open_store
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.failures import EffectFailed
from aetherscale.runtime.host import LOG_NAME
from aetherscale.settings import Settings
from aetherscale.setup import hostremoval
from tests.support.network_worlds import BOOT, LAB, NODE, OTHER, OTHER_SPEC, Process, kernel

pytestmark = pytest.mark.integration


async def test_the_routes_of_the_host_are_told_with_their_devices(tmp_path: Path) -> None:
    async with kernel(tmp_path / "state") as host:
        driver = host.driver()
        assert driver.routes() == {}
        for words in ("link add up0 type veth peer name up1", "addr add 10.1.2.3/16 dev up0", "link set up0 up"):
            subprocess.run(["ip", *words.split()], check=True)  # noqa: ASYNC221
        assert driver.routes() == {IPv4Network("10.1.0.0/16"): "up0"}


def lacking(state_dir: Path) -> set[str]:
    """What `doctor` misses for networks of the node of a state directory."""
    return {check for check, _, _ in needs.missing(needs.look(Settings(state_dir, NODE)))}


async def test_a_second_node_on_the_host_is_refused_and_takes_over_when_the_first_has_ended(tmp_path: Path) -> None:
    async with kernel(tmp_path / "state") as host:
        first, second = Process(host.driver()), Process(HostNetworking("host2", BOOT, tmp_path / "second"))
        await first.start({}, {})
        await second.start({}, {})
        assert await first.ensure() == NetworkEnsured("k", BOOT)
        with pytest.raises(Refused, match="another node has the networks of this host"):
            second.driver.require()
        failed = await second.ensure(OTHER, OTHER_SPEC)
        assert isinstance(failed, EffectFailed)
        assert failed.reason == "another node has the networks of this host"
        assert await host.bridges() == {bridge_name(LAB)}
        assert "networks of the host" in lacking(tmp_path / "second")
        assert "networks of the host" not in lacking(tmp_path / "state")
        await first.driver.close()
        second.driver.require()
        assert "networks of the host" not in lacking(tmp_path / "second")
        await second.driver.close()


async def test_a_device_that_is_no_bridge_is_none_of_a_network(tmp_path: Path) -> None:
    async with kernel(tmp_path / "state") as host:
        node = Process(host.driver())
        await node.start({}, {})
        failed = await node.ensure(OTHER, replace(OTHER_SPEC, kind="bridged", ipv4=None, ipv6=None, bridge="lo"))
        assert isinstance(failed, EffectFailed)
        assert (failed.reason, failed.retryable) == ("lo of the host is no bridge", False)
        await node.driver.close()


async def test_a_service_that_is_purged_takes_its_networks_along_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = tmp_path / "state", tmp_path / "others"
    others.mkdir(mode=0o700)
    async with kernel(ours) as host:
        node = Process(host.driver())
        await node.start({}, {})
        assert await node.ensure() == NetworkEnsured("k", BOOT)
        await node.driver.close()  # as where a node ends: all of it runs on
        there = removal.present()
        assert bridge_name(LAB) in there
        monkeypatch.setattr(hostremoval, "STATE_DIR", ours)
        assert not hostremoval._has_networks(), "there is no log that says whose they are"
        for name, state, left in (("host2", others, there), (NODE, ours, ())):
            await (await open_store(state / LOG_NAME, node=name, epoch="e", now_us=1)).close()
            monkeypatch.setattr(hostremoval, "STATE_DIR", state)
            assert hostremoval._has_networks()
            await asyncio.to_thread(hostremoval._remove_networks)
            assert tuple(removal.present()) == tuple(left)
        assert not hostremoval._has_networks()
