"""Packets that are dropped, told by the kernel: which, how many of a flood, and what is left of it in the rules."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aetherscale.actors.compute.model.commands import VmRules
from aetherscale.actors.network.model import droplog
from aetherscale.actors.network.model.devices import bridge_name, tap_name
from aetherscale.actors.network.model.marks import Drop
from aetherscale.actors.network.nft.droplog import DropLog, Logged
from aetherscale.actors.network.nft.nftables import Nftables
from aetherscale.kernel.errors import Reason, Refused
from tests.contract.test_network_drops import PATIENCE_S, guest, next_of
from tests.support import firewalled
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled, listed
from tests.support.frames import BROADCAST
from tests.support.network_worlds import DB, LAB, SPEC, WEB, Kernel, Process, kernel, port, state
from tests.support.spoofs import spoofs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
GROUP = "a" * 16
FLOOD = 1000
LOGS = f" group {droplog.GROUP} "
RULES = 6
"""That log, while somebody watches."""
MULTICAST = "01:00:5e:00:00:fb"


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        made.nft.run(droplog.text(logs=True))
        yield made


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Kernel]:
    async with kernel(tmp_path / "state") as made:
        yield made


@pytest.fixture
async def process(world: Kernel) -> AsyncIterator[Process]:
    process = Process(world.driver())
    await process.start({}, {})
    await process.ensure()
    yield process
    await process.driver.close()


def rules() -> list[str]:
    with closing(Nftables()) as nft:
        return [line for line in listed(nft) if not line.startswith("elements = ")]


def told_until(log: DropLog, is_enough: Callable[[list[Logged]], bool]) -> list[Logged]:
    """All that is told until it is enough, which has to come."""
    found: list[Logged] = []

    async def read() -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_enough(found):
                found.extend(await log.read())

    asyncio.run(read())
    return found


def lldp(mac: str) -> bytes:
    return bytes.fromhex(f"ffffffffffff{mac.replace(':', '')}88cc") + bytes(50)


class TestTheKernel:
    def test_whatever_is_counted_is_told_by_its_kind(self, host: Firewalled) -> None:
        lab = host.network(1)
        web, db = host.guest(lab, 2), host.guest(lab, 3)
        with closing(DropLog()) as log:
            first = {kind: frame for _, kind, frame in spoofs(web, db)}
            web.send(*first.values())
            found = told_until(log, lambda found: {each.kind for each in found} >= first.keys())
        assert {each.indev for each in found} == {host.index(web.tap)}
        assert first.keys() == host.counters.of_port(web.tap).keys()

    def test_a_flood_hides_neither_another_port_nor_another_kind(self, host: Firewalled) -> None:
        lab = host.network(1)
        web, db = host.guest(lab, 2), host.guest(lab, 3)
        with closing(DropLog()) as log:
            web.send(*[lldp(web.mac)] * FLOOD, lldp("02:00:00:00:00:66"))
            db.send(lldp(db.mac))
            wanted = {(host.index(web.tap), Drop.MAC), (host.index(db.tap), Drop.ETHERTYPE)}
            found = told_until(log, lambda found: {(each.indev, each.kind) for each in found} >= wanted)
        flood = [each for each in found if each.indev == host.index(web.tap) and each.kind is Drop.ETHERTYPE]
        assert droplog.PER_SECOND <= len(flood) < FLOOD // 2
        assert host.counters.of_port(web.tap)[Drop.ETHERTYPE] == FLOOD

    def test_of_all_ports_so_many_are_told_and_no_more(self, host: Firewalled) -> None:
        web = host.guest(host.network(1), 2)
        each = f"limit rate {droplog.PER_SECOND}/second burst {droplog.PER_SECOND} packets"
        host.nft.run(droplog.text(logs=True).replace(each, f"limit rate {FLOOD}/second burst {FLOOD} packets"))
        host.nft.run("flush set bridge aetherscale logged")
        with closing(DropLog()) as log:
            web.send(*[lldp(web.mac)] * FLOOD)
            found = told_until(log, lambda found: len(found) >= droplog.ALL_PER_SECOND)
        assert len(found) < FLOOD // 2

    def test_what_comes_to_a_port_is_told_with_who_sent_it(self, host: Firewalled) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        web, db = host.guest(lab, 2, groups=(host.group(GROUP, "in:tcp:80"),)), host.guest(lab, 3)
        host.acquaint(lab.bridge, web, db)
        bridge, uplink = host.index(lab.bridge), host.index("uplink")
        # The host has greeted its neighbors meanwhile, which no group allows either: begin anew.
        host.nft.run(droplog.text(logs=False) + droplog.text(logs=True))
        with closing(DropLog()) as log:
            wanted = set()
            for to in (4, 6):
                at_web, at_db = own(web, to), own(db, to)
                db.send(db.udp(at_web, b"x", mac=web.mac, ports=(4000, 53)))
                wanted.add((own(db, to), at_web, "UNINVITED", host.index(db.tap), host.index(web.tap)))
                # At the port of one with groups; of one without, the host knows already.
                world.send(*(world.udp(at, b"x", mac=host.mac("uplink"), ports=(4000, 53)) for at in (at_web, at_db)))
                wanted.add((own(world, to), at_web, "UNINVITED", 0, host.index(web.tap)))
                wanted.add((own(world, to), at_db, "", uplink, bridge))
            found = told_until(log, lambda found: {told(each) for each in found} >= wanted)
        assert {told(each) for each in found if each.frame.packet == "udp/53"} == wanted
        assert {each.direction for each in found} == {"in"}

    def test_what_the_host_does_not_take_of_a_guest_is_told(self, host: Firewalled) -> None:
        lab, other = host.network(1, "nat"), host.network(2, "nat")
        web, far = host.guest(lab, 2), host.guest(other, 2)
        bridge, far_bridge, mac = host.index(lab.bridge), host.index(other.bridge), host.mac(lab.bridge)
        with closing(DropLog()) as log:
            wanted = set()
            for to, router in ((4, "10.64.1.1"), (6, "fd00:1::1")):
                web.send(*(web.udp(at, b"x", mac=mac, ports=(4000, 53)) for at in (router, own(far, to))))
                wanted |= {
                    (own(web, to), router, "", bridge, 0),
                    (own(web, to), own(far, to), "", bridge, far_bridge),
                }
            # What is for everybody on the link reaches the host as well, which is not asked.
            web.send(web.udp("255.255.255.255", b"x", mac=BROADCAST), web.udp("224.0.0.251", b"x", mac=MULTICAST))
            web.send(lldp(web.mac))
            found = told_until(log, lambda found: any(each.frame.packet == "ethertype 0x88cc" for each in found))
        of_host = [each for each in found if each.kind is None]
        assert {told(each) for each in of_host} == wanted
        assert {(each.frame.target in ("10.64.1.1", "fd00:1::1")) == each.is_to_host for each in of_host} == {True}
        assert {each.direction for each in of_host} == {"out"}


def own(guest: FakeGuest, version: int) -> str:
    return guest.ipv4 if version == 4 else guest.ipv6


def told(logged: Logged) -> tuple[str, str, str, int, int]:
    kind = logged.kind.name if logged.kind is not None else ""
    return logged.frame.source, logged.frame.target, kind, logged.indev, logged.outdev


class TestTheDriver:
    async def test_the_rules_are_as_before_when_nobody_watches_any_more(self, world: Kernel, process: Process) -> None:
        before = rules()
        assert not any(LOGS in line for line in before)
        drops = await process.driver.watch_drops()
        assert sum(LOGS in line for line in rules()) == RULES
        await process.driver.apply_group(GROUP, [firewalled.rule("in:tcp:80")])
        await process.driver.remove_group(GROUP)
        assert sum(LOGS in line for line in rules()) == RULES
        await drops.close()
        assert rules() == before

    async def test_who_sent_it_within_the_network_is_known(self, world: Kernel, process: Process) -> None:
        await process.driver.apply_group(GROUP, [firewalled.rule("in:tcp:80"), firewalled.rule("out:tcp:80")])
        async with guest(process, WEB) as web, guest(process, DB) as db:
            await process.driver.apply_rules(WEB, VmRules((GROUP,)))
            one, other = (FakeGuest(port(vm).tap, port(vm).mac, str(port(vm).ipv4), "", of[0])
                          for vm, of in ((WEB, web), (DB, db)))  # fmt: skip
            drops = await process.driver.watch_drops()
            for sender, receiver, kind in ((other, one, "uninvited"), (one, other, "forbidden")):
                sender.send(sender.udp(receiver.ipv4, b"x", mac=receiver.mac, ports=(4000, 53)))
                told = await next_of(drops)
                assert (told.vm_id, told.other_id, told.kind) == (WEB, DB, kind)
                assert (told.frame.source, told.frame.target) == (sender.ipv4, receiver.ipv4)
                assert (told.frame.packet, told.tap) == ("udp/53", tap_name(WEB, 0))
            await drops.close()

    async def test_a_watch_goes_on_when_another_program_has_flushed_all(self, world: Kernel, process: Process) -> None:
        await process.driver.restore({WEB: [port(WEB)]})
        async with guest(process, WEB) as web:
            drops = await process.driver.watch_drops()
            await asyncio.to_thread(subprocess.run, ["nft", "flush", "ruleset"], check=True)
            told = asyncio.ensure_future(next_of(drops))
            while not told.done():
                world.spoof(WEB, web)
                await asyncio.sleep(0.01)
            assert (await told).vm_id == WEB
            await drops.close()
        assert not any(LOGS in line for line in rules())

    async def test_a_node_that_died_while_somebody_watched_has_lost_no_rules(self, world: Kernel) -> None:
        died = Process(world.driver())
        await died.start({}, {})
        await died.ensure()
        await died.driver.watch_drops()
        await died.driver.close()
        assert any(LOGS in line for line in rules())
        following = Process(world.driver())
        await following.start({LAB: state(LAB, SPEC)}, {})
        assert following.reports == []
        assert not any(LOGS in line for line in rules())
        await following.driver.close()
        assert bridge_name(LAB) in await world.bridges()

    async def test_where_another_program_has_the_group_it_is_refused_and_the_rules_stay(
        self, world: Kernel, process: Process
    ) -> None:
        before = rules()
        with closing(DropLog()):
            with pytest.raises(Refused, match=r"what is dropped cannot be watched: .*nflog") as refused:
                await process.driver.watch_drops()
            assert refused.value.reason is Reason.UNAVAILABLE
            assert rules() == before
        await (await process.driver.watch_drops()).close()

    async def test_where_the_tables_are_gone_it_is_refused_until_they_are_put_back(
        self, world: Kernel, process: Process
    ) -> None:
        before = rules()
        world.flush()
        with pytest.raises(Refused, match="the kernel refused the rules of networks"):
            await process.driver.watch_drops()
        await process.driver.apply_group(GROUP, [])
        await process.driver.remove_group(GROUP)
        assert rules() == before
        await (await process.driver.watch_drops()).close()
