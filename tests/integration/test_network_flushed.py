"""Somebody flushes the rules under a hundred ports: they are whole again, it is told once, and no gap stays open."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.commands import NetworkLost
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.nft.nftables import Nftables
from benchmarks import networks
from benchmarks.rows_networked import networked
from tests.integration.conftest import MakeNode
from tests.support.eventually import PATIENCE_S
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import listed
from tests.support.network_namespaces import missing, network_namespace
from tests.support.network_worlds import LAB, Process, kernel, state
from tests.support.nft_program import NFT, nft
from tests.support.node import RunningNode

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not os.access(NFT, os.X_OK), reason="needs the program nft"),
]
PORTS = 100
FLUSHES = 5
MORE = 500
"""Frames that are sent before a flush, and after it is mended."""


class Flood:
    """Frames of a guest that claims to be another, one after the other, numbered."""

    def __init__(self, guest: FakeGuest, victim: FakeGuest) -> None:
        self._guest, self._victim = guest, victim
        self.arrived: list[int] = []
        """The numbers of those that have passed."""
        self.sent = 0
        """The number of the one that is being sent; those before it have passed, or not, by now."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._receive()

    async def more(self) -> None:
        """So many more are sent."""
        wanted = self.sent + MORE
        async with asyncio.timeout(PATIENCE_S):
            while self.sent < wanted:  # noqa: ASYNC110 - by a thread
                await asyncio.sleep(0.001)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sent += 1
            data = f"spoof-{self.sent:08d}".encode()
            self._guest.send(self._guest.udp(self._victim.ipv4, data, mac=self._victim.mac, source="10.9.8.250"))
            if self.sent % 50 == 0:
                self._receive()

    def _receive(self) -> None:
        found = (re.search(rb"spoof-(\d{8})", frame) for frame in self._victim.received())
        self.arrived += [int(each[1]) for each in found if each]


async def guest(process: Process, vm_id: str, port: PortSpec) -> FakeGuest:
    """The guest of a port, by the descriptor that QEMU would have."""
    (descriptor,) = await process.driver.open(vm_id, [port])
    os.set_blocking(descriptor, False)
    assert port.ipv4 is not None
    return FakeGuest(port.tap, port.mac, port.ipv4, port.ipv6 or "::1", descriptor)


def ports() -> dict[str, PortSpec]:
    """The port of each of a hundred VMs."""
    vms = {number: f"{number:016x}" for number in range(2, 2 + PORTS)}
    return {
        vm_id: PortSpec(LAB, "lab", f"vm-{number}", tap_name(vm_id, 0), mac_of(vm_id), f"10.9.8.{number}", None)
        for number, vm_id in vms.items()
    }


async def test_no_spoofed_frame_passes_but_while_there_are_no_rules(tmp_path: Path) -> None:
    every = ports()
    async with kernel(tmp_path / "state") as host:
        process = Process(host.driver())
        await process.start({}, {})
        await process.ensure()
        await process.driver.reconcile({LAB: state()})
        await process.driver.restore({vm_id: [port] for vm_id, port in every.items()})
        attacker, victim = [await guest(process, *each) for each in list(every.items())[:2]]
        rules = Nftables()
        whole, gaps = listed(rules), []
        with Flood(attacker, victim) as flood:
            for _ in range(FLUSHES):
                await flood.more()
                process.reports.clear()
                begun = flood.sent
                await nft("flush ruleset")
                await told(process)
                gaps.append(range(begun, flood.sent + 1))
                assert listed(rules) == whole
                await flood.more()
        assert [number for number in flood.arrived if not any(number in gap for gap in gaps)] == []
        assert host.ruled() == {port.tap for port in every.values()}
        victim.received()
        attacker.send(attacker.udp(victim.ipv4, b"its own", mac=victim.mac))
        victim.until(b"its own")
        for each in (attacker, victim, rules):
            each.close()
        await process.driver.close()


async def told(process: Process) -> None:
    """The driver has reported that the rules were removed, and by whom, which it does when they are whole."""
    async with asyncio.timeout(PATIENCE_S):
        while not process.reports:  # noqa: ASYNC110 - of the driver
            await asyncio.sleep(0.001)
    (lost,) = process.reports
    assert isinstance(lost, NetworkLost)
    assert (lost.network_id, lost.what) == (LAB, "tables removed")
    assert re.fullmatch(r"nft, pid \d+", lost.by)


async def downs(node: RunningNode) -> list[tuple[str, str]]:
    """What was down of networks, and by whom, in the order of the log."""
    _, out, _ = await node.cli("events", "list", "--type", "NetworkDown", "--json")
    return re.findall(r'"what": ?"([^"]*)", ?"by": ?"([^"]*)"', out)


async def up(node: RunningNode) -> None:
    """All of its network is there, and the log has that: a loss is told again from then on."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            views = await node.request("aether.v1.default.cmd.network.list-networks", {})
            if [each["network"]["phase"] for each in views if "network" in each] == ["ready"]:
                return
            await asyncio.sleep(0.05)


@pytest.mark.timeout(1800)
async def test_a_flush_is_in_the_log_once_with_who_did_it(make_node: MakeNode) -> None:
    """The second flush is there to show that nothing more is told of the first."""
    node = make_node(name=networks.NODE)
    among = networks.networks(1)
    those = networks.ports(among, 0, PORTS)
    await networked(node.state_dir, among, those)
    with network_namespace():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: ASYNC221
        rules = Nftables()
        try:
            await node.start()
            await up(node)
            before = await downs(node)
            whole = listed(rules)
            pids = []
            for number in (1, 2):
                await up(node)
                pids.append(await nft("flush ruleset"))
                async with asyncio.timeout(PATIENCE_S):
                    while len(await downs(node)) < len(before) + number:  # noqa: ASYNC110 - of the log
                        await asyncio.sleep(0.05)
                assert listed(rules) == whole
            found = (await downs(node))[len(before) :]
            assert [what for what, _ in found] == ["tables removed"] * 2
            by = [re.fullmatch(r"nft, pid (\d+)", by) for _, by in found]
            assert [int(each[1]) for each in by if each] == pids or not all(pids)
            assert sum(port.tap in " ".join(whole) for (port,) in those.values()) == PORTS
        finally:
            await node.close()
            rules.close()
            await networks.end_resolvers(node.state_dir)
