"""Many spoofed frames of many kinds, none of which passes, whatever happens to the rules and the ports meanwhile.

Through the real driver, on netlink, nft and dnsmasq, in a namespace: the rules are replaced whole again and again, VMs
start, stop and are deleted, and frames come from taps that are only being made. The ordinary run sends few of them;
`just spoofs` a million.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from itertools import count, permutations
from pathlib import Path
from typing import Any, Final

import pytest

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.addresses import ipv6_of, mac_of
from aetherscale.actors.network.model.chains import Drop
from aetherscale.actors.network.model.devices import advertiser_name, bridge_name, service_name, tap_name
from aetherscale.actors.network.model.effects import (
    EnsureNetwork,
    NetworkEnsured,
    NetworkRemoved,
    NetworkSpec,
    RemoveNetwork,
)
from aetherscale.actors.network.netlink import taps
from aetherscale.actors.network.nft.counters import DropCounters
from aetherscale.kernel.names import derive_id
from tests.support.drop_tally import Window
from tests.support.eventually import asked_until
from tests.support.fake_guest import FakeGuest, open_tap
from tests.support.network_namespaces import missing, network_namespace
from tests.support.storm import Party, Storm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]

SPOOFS: Final = int(os.environ.get("AETHERSCALE_SPOOFS", "10000"))
REPLACEMENTS: Final = int(os.environ.get("AETHERSCALE_REPLACEMENTS", "10"))
BY_ANOTHER_EVERY: Final = 5
"""How often it is another program that changes the rules, so that the driver replaces them by itself."""
MOST_S: Final = 120.0
NODE: Final = "host1"
LAB, OTHER = (derive_id(str(os.getpid()), f"storm-{name}") for name in ("lab", "other"))
SPECS: Final = {
    LAB: NetworkSpec("lab", "nat", "10.9.8.0/24", "fd12:3456:789a:1::/64", None),
    OTHER: NetworkSpec("other", "isolated", "10.9.9.0/24", "fd12:3456:789a:2::/64", None),
}
STRAY: Final = "aepffffffffff01"
STRANGE: Final = "aepffffffffff02"
"""What another program makes a port of."""


def port(vm_id: str, network_id: str, number: int, index: int = 0) -> PortSpec:
    spec, mac = SPECS[network_id], mac_of(f"{vm_id}-{index}")
    assert spec.ipv4 is not None
    assert spec.ipv6 is not None
    ipv4 = str(IPv4Network(spec.ipv4)[number])
    ipv6 = str(ipv6_of(IPv6Network(spec.ipv6), mac))
    return PortSpec(network_id, spec.name, f"vm-{vm_id}", tap_name(vm_id, index), mac, ipv4, ipv6)


class Vm:
    """A VM whose guests the test plays: one for each port."""

    def __init__(self, scene: Scene, vm_id: str, *ports: PortSpec) -> None:
        self._scene = scene
        self.id = vm_id
        self.ports = ports
        self.parties = [
            Party(FakeGuest(each.tap, each.mac, each.ipv4 or "", each.ipv6 or "", -1), each.network_id)
            for each in ports
        ]

    async def start(self) -> None:
        """Open its ports, to whose taps frames are sent as soon as there is a descriptor of them."""
        self._scene.starting |= {party.guest.tap: party for party in self.parties}
        opened = await self._scene.driver.open(self.id, self.ports)
        for descriptor, party in zip(opened, self.parties, strict=True):
            os.set_blocking(descriptor, False)
            party.guest.descriptor = descriptor
            await self._is_heeded(party.guest.tap)
            party.is_open = party.is_settled = True
            self._scene.storm.join(party)

    async def _is_heeded(self, tap: str) -> None:
        """A bridge heeds a port as soon as the kernel has noticed its carrier, a moment after it is up."""
        counters = self._scene.counters
        before = counters.of_port(tap)
        await until(lambda: counters.of_port(tap) not in ({}, before))

    async def end(self) -> None:
        """Its QEMU ends."""
        for party in self.parties:
            await until(partial(_is_alone, party))
            self._scene.storm.leave(party)

    async def delete(self, *, alive: bool) -> None:
        """Close its ports; `alive` is a guest that sends on meanwhile."""
        for party in self.parties:
            self._scene.storm.settle(party, settled=False)
        if not alive:
            await self.end()
        await self._scene.driver.close_ports(self.id, self.ports)
        if alive:
            await self.end()


class Scene:
    """Two networks of the real driver, and the storm in them."""

    def __init__(self, driver: HostNetworking, storm: Storm) -> None:
        self.driver = driver
        self.storm = storm
        self.starting: dict[str, Party] = {}
        """Those whose taps are made now, by the tap."""
        self.window = Window()
        self.counters = DropCounters()
        self.replacements = self.lives = self.checks = 0
        self.told: list[str] = []
        self._numbers = count(1)

    def attached(self, name: str, descriptor: int) -> None:
        """There is a descriptor of a tap, which is not up yet if it is new."""
        party = self.starting.pop(name, None)
        if party is not None:
            self.storm.hurry(party, os.dup(descriptor))

    async def replace(self, number: int) -> None:
        """Have the driver replace all rules, as it does when somebody has changed them; the counters begin anew."""
        self.check()
        before = self.storm.tally.now()
        if number % BY_ANOTHER_EVERY == 0:
            words = ("nft", "add", "element", "bridge", "aetherscale", "ports", f"{{ {STRANGE} }}")
            await (await asyncio.create_subprocess_exec(*words)).wait()
            # So much is a fight, of which not every round is told.
            await until(lambda: STRANGE not in said("nft", "list", "set", "bridge", "aetherscale", "ports"))
        else:
            await self.driver._rules_changed("rules changed", "the storm")
        self.window = Window(before, self.storm.tally.now())
        self.replacements += 1
        self.check()

    def check(self) -> None:
        """The kernel has counted what was sent since the last replacement, but for what is on its way now."""
        for party in [each for each in self.storm.parties if each.is_ruled]:
            tap, before = party.guest.tap, self.storm.tally.now()
            counted = self.counters.of_port(tap)
            after = self.storm.tally.now()
            for kind in set(Drop) - {Drop.UNINVITED, Drop.FORBIDDEN}:
                found, key = counted.get(kind, 0), (tap, kind)
                least = self.window.least(before, key) if party.is_settled else 0
                most = self.window.most(after, key)
                assert least <= found <= most, f"{key}: {found} counted, {least} to {most} were sent"
                self.checks += 1

    async def live(self, worker: int, is_over: asyncio.Event) -> None:
        """VMs that start, stop, start and are deleted, one after the other."""
        while not is_over.is_set():
            vm_id = derive_id(str(os.getpid()), str(worker), str(next(self._numbers)))
            ports = [port(vm_id, LAB, 100 + worker)]
            if worker == 0:
                ports.append(port(vm_id, OTHER, 100, 1))
            vm, alive = Vm(self, vm_id, *ports), self.lives % 2 == 0
            for doing, step in (
                ("the first start of a VM", vm.start()),
                ("the life of a VM", self.passes(400)),
                ("the stop of a VM", vm.end()),
                ("another start of a VM", vm.start()),
                ("the second life of a VM", self.passes(400)),
                ("the end of a VM whose guest sends on" if alive else "the end of a VM", vm.delete(alive=alive)),
            ):
                self.storm.doing[f"worker {worker}"] = doing
                await step
            self.lives += 1
        del self.storm.doing[f"worker {worker}"]

    async def passes(self, frames: int) -> None:
        """Wait until so many more have been sent."""
        least = self.storm.sent + frames
        await until(lambda: self.storm.sent >= least or self.storm.failure is not None)
        if self.storm.failure is not None:
            raise self.storm.failure


def _is_alone(party: Party) -> bool:
    return not party.is_hurrying.is_set()


async def until(holds: Callable[[], bool]) -> None:
    """Ask again and again: other threads, and the kernel, tell nobody."""

    async def ask() -> bool:
        return holds()

    await asked_until(ask, MOST_S)


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    state_dir = tmp_path / "state"
    state_dir.mkdir(mode=0o700)
    with network_namespace(), ExitStack() as stack:
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")
        for calls in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
            calls.write_text("0")
        driver = HostNetworking(NODE, "boot-1", state_dir)
        routers = {network_id: mac_of(bridge_name(network_id)) for network_id in SPECS}
        own = {*routers.values(), *(mac_of(f"resolver {network_id}") for network_id in SPECS)}
        names = [name(network_id) for network_id in SPECS for name in (service_name, advertiser_name)]
        storm = Storm(own | {mac_of(name) for name in names}, routers, "10.9.8.1")
        stack.callback(storm.close)
        made = Scene(driver, storm)
        stack.callback(made.counters.close)
        plain = taps.attach

        def attach(name: str, *, new: bool) -> int:
            descriptor = plain(name, new=new)
            made.attached(name, descriptor)
            return descriptor

        monkeypatch.setattr(taps, "attach", attach)

        async def report(observation: Any) -> None:
            made.told.append(observation.by)

        await driver.start(report)
        for network_id, spec in SPECS.items():
            assert await driver.perform(EnsureNetwork("k", network_id, spec), lambda step, **fields: None) == (
                NetworkEnsured("k", "boot-1")
            )
        yield made
        storm.stop()
        for network_id, spec in SPECS.items():
            assert await driver.perform(RemoveNetwork("k", network_id, spec), lambda step, **fields: None) == (
                NetworkRemoved("k")
            )
        await driver.close()


def stray() -> Party:
    """A tap in the bridge of the lab that has no rules."""
    guest = FakeGuest(STRAY, "52:54:00:00:66:01", "10.9.8.66", "fd12:3456:789a:1::66", open_tap(STRAY))
    said("ip", "link", "set", STRAY, "master", bridge_name(LAB), "up")
    return Party(guest, LAB, is_ruled=False)


def said(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


async def test_none_of_many_spoofed_frames_passes_whatever_happens_meanwhile(scene: Scene) -> None:
    storm = scene.storm
    lasting = [
        Vm(scene, vm_id, port(vm_id, network_id, number))
        for number, network_id in ((2, LAB), (3, LAB), (4, OTHER), (5, OTHER))
        for vm_id in [derive_id(str(os.getpid()), "lasting", str(number))]
    ]
    for line in said("ip", "-br", "link").splitlines():
        if (device := line.split()[0].split("@")[0]).startswith(("aeb", "aes", "aer")):
            storm.listen(device)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind((storm.listener, 53))
        storm.start()
        for vm in lasting:
            await vm.start()
        storm.join(stray())
        await scene.passes(1)
        is_over = asyncio.Event()
        living = [asyncio.ensure_future(scene.live(worker, is_over)) for worker in range(3)]
        try:
            for number in range(1, REPLACEMENTS + 1):
                storm.doing["rules"] = f"replacement {number}"
                await scene.replace(number)
                await scene.passes(max(1, SPOOFS * number // REPLACEMENTS - storm.sent))
        finally:
            is_over.set()
            await asyncio.gather(*living)
        storm.stop()
        if storm.failure is not None:
            raise storm.failure
        assert storm.passed == []
        assert storm.lost == []
        with pytest.raises(BlockingIOError):
            listener.recv(1)
    await counted_to_the_last(scene)
    print(
        f"{storm.sent + storm.early} spoofed frames of {len(storm.kinds)} kinds: none passed. {storm.legal} legal: no "
        f"loss. {storm.early} to taps that were made, to {storm.raced} of them before and as they came up. "
        f"{scene.replacements} replacements, {scene.lives} VMs started twice and deleted, {scene.checks} counters."
    )
    assert any("nft, pid" in each for each in scene.told)
    assert storm.sent >= SPOOFS
    assert len(storm.kinds) >= 100
    assert min(storm.legal, storm.early, storm.raced, scene.lives, storm.from_host) > 0
    for vm in lasting:
        await vm.delete(alive=False)
    assert {line.split()[0].split("@")[0] for line in said("ip", "-br", "link").splitlines()} == {
        "lo", STRAY, *map(bridge_name, SPECS), *map(service_name, SPECS), advertiser_name(LAB)
    }  # fmt: skip
    # What they have sent is forgotten when its time is over.
    rules = "".join(said("nft", "list", "table", family, "aetherscale") for family in ("bridge", "inet", "arp"))
    assert "aep" not in rules.replace(STRAY, "").replace("aep*", "")


async def counted_to_the_last(scene: Scene) -> None:
    """Where nothing else goes on the counters are what was sent, neither more nor less."""
    storm, sent = scene.storm, Counter[tuple[str, Drop]]()
    await scene.driver._rules_changed("rules changed", "the storm")
    ruled = [each for each in storm.parties if each.is_ruled]
    for party, victim in permutations(ruled, 2):
        storm.batch(party, victim)
        sent.update((party.guest.tap, kind) for _, kind, _ in storm.made_up(party, victim) if kind is not None)
    assert storm.passed == []
    assert storm.lost == []
    for party in ruled:
        tap, counted = party.guest.tap, scene.counters.of_port(party.guest.tap)
        assert {kind: sent[tap, kind] for kind in Drop if kind is not Drop.UNINVITED} == {
            kind: counted.get(kind, 0) for kind in Drop if kind is not Drop.UNINVITED
        }
