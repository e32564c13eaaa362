"""Groups that change: by deltas and by replacing all, beside traffic, and where nft refuses them."""

from __future__ import annotations

import random
import re
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model.commands import VmRules
from aetherscale.actors.network import groups as groups_of_driver
from aetherscale.actors.network.model.effects import NetworkKind
from aetherscale.actors.network.model.groups import GroupRules, compile_group
from aetherscale.actors.network.model.ruleset import (
    ForwardRules,
    NetworkRules,
    PortRules,
    Ruleset,
    compile,
    delta,
    regrouped,
    replace_all,
)
from aetherscale.kernel.fault import Fault
from tests.support import firewalled
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled, listed, rule
from tests.support.frames import SYN
from tests.support.network_worlds import LAB, WEB, Kernel, Process, World, port, process, state, world

__all__ = ["process", "world"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
GROUPS = [f"{number:016x}" for number in range(1, 7)]
ONLY_KERNEL = pytest.mark.parametrize("world", ["kernel"], indirect=True)


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        yield made


def tables(host: Firewalled) -> list[str]:
    """What the kernel has, chain by chain and set by set, in order."""
    blocks = re.split(r"\n(?=(?:table|chain|set|map) |\})", "\n".join(listed(host.nft)))
    return sorted(blocks)


def random_rule(chance: random.Random) -> str:
    direction, protocol = chance.choice(("in", "in", "out")), chance.choice(("tcp", "udp", "icmp", "any"))
    parts = [direction, protocol]
    if protocol in ("tcp", "udp") and chance.random() < 0.7:
        ends = sorted(chance.sample(range(1, 65536), 2 * chance.randint(1, 8)))
        ranges = [(low, high) for low, high in zip(ends[::2], ends[1::2], strict=True)]
        parts.append(",".join(str(low) if chance.random() < 0.5 else f"{low}-{high}" for low, high in ranges))
    elif protocol == "icmp" and chance.random() < 0.7:
        types = ("destination-unreachable", "echo-reply", "echo-request", "packet-too-big", "time-exceeded")
        parts.append(",".join(sorted(chance.sample(types, chance.randint(1, 4)))))
    if chance.random() < 0.6:
        length4, length6 = chance.randint(0, 32), chance.randint(0, 128)
        four = chance.getrandbits(32) >> (32 - length4) << (32 - length4)
        six = chance.getrandbits(128) >> (128 - length6) << (128 - length6)
        about = [
            f"{'.'.join(str(four >> at & 255) for at in (24, 16, 8, 0))}/{length4}",
            f"{':'.join(f'{six >> at & 0xFFFF:x}' for at in range(112, -1, -16))}/{length6}",
            f"group/{chance.choice(GROUPS)}",
        ]
        parts.append(f"{'from' if direction == 'in' else 'to'}={chance.choice(about)}")
    return ":".join(parts)


def random_group(chance: random.Random, most: int = 4) -> GroupRules:
    return compile_group([rule(random_rule(chance)) for _ in range(chance.randint(0, most))])


def random_forwards(chance: random.Random, place: int, most: int = 4) -> tuple[ForwardRules, ...]:
    """Forwards of ports of the host that no other place has."""
    found: list[ForwardRules] = []
    for host_port in chance.sample(range(place * 8 + 1, place * 8 + 8), chance.randint(0, most)):
        address = chance.choice((None, None, ip_address("192.0.2.1"), ip_address("2001:db8::1")))
        protocol, guest_port = chance.choice(("tcp", "udp")), chance.randint(1, 65535)
        found.append(ForwardRules(protocol, address, host_port, guest_port, chance.random() < 0.7))  # type: ignore[arg-type]
    return tuple(found)


def change(host: Firewalled, chance: random.Random) -> None:
    """Change something that may be changed together: groups, ports, what they bear, kinds of networks."""
    for _ in range(chance.randint(1, 3)):
        network, number = chance.choice(list(host.networks.values())), chance.randrange(10, 16)
        what = chance.choice(("group", "group", "no group", "comes", "goes", "bears", "bears", "kind", "leads"))
        if what == "group":
            host.groups[chance.choice(GROUPS)] = random_group(chance)
        elif what == "no group":
            host.groups.pop(chance.choice(GROUPS), None)
        elif what == "comes":
            groups = tuple(sorted(chance.sample(GROUPS, chance.randint(0, 3))))
            leasing = network.kind == "public" and chance.random() < 0.5
            host.guest(network, number, groups=groups, made=False, leasing=leasing)
        elif what == "goes" and host.ports:
            del host.ports[chance.choice(list(host.ports))]
        elif what == "bears" and host.ports:
            tap = chance.choice(list(host.ports))
            groups = tuple(sorted(chance.sample(GROUPS, chance.randint(0, 3))))
            host.ports[tap] = replace(host.ports[tap], groups=groups)
        elif what == "leads" and host.ports:
            tap = chance.choice(list(host.ports))
            host.ports[tap] = replace(host.ports[tap], forwards=random_forwards(chance, int(tap[3:], 16)))
        elif what == "kind":
            turned: dict[NetworkKind, NetworkKind] = {"isolated": "nat", "nat": "isolated", "bridged": "public"}
            host.networks[network.bridge] = replace(network, kind=turned.get(network.kind, "bridged"))


class TestDeltas:
    @pytest.mark.parametrize("seed", range(8))
    def test_they_lead_to_the_same_as_replacing_all(self, host: Firewalled, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        kinds: tuple[NetworkKind, ...] = ("isolated", "nat", "bridged", "public")
        for number, kind in enumerate(kinds, 1):
            host.network(number, kind)
        for _ in range(25):
            change(host, chance)
            host.apply()
            by_delta = tables(host)
            host.replace()
            assert tables(host) == by_delta

    def test_nothing_is_left_of_groups_that_are_gone(self, host: Firewalled) -> None:
        lab = host.network(1)
        host.flows.ensure()
        host.apply()
        empty = tables(host)
        for group_id in GROUPS:
            host.group(group_id, f"in:tcp:80:from=group/{GROUPS[0]}", f"out:any:to=group/{GROUPS[-1]}")
        for number, group_id in enumerate(GROUPS, 10):
            host.guest(lab, number, groups=(group_id,), made=False)
        host.ports.clear()
        host.groups.clear()
        host.apply()
        assert tables(host) == empty

    def test_a_text_does_not_grow_with_the_ports(self) -> None:
        assert delta(*regrouped_among(1000)) == delta(*regrouped_among(6)) != ""


def regrouped_among(ports: int) -> tuple[Ruleset, Ruleset]:
    """Rulesets before and after a group has other rules, and its first one `out`."""
    network = NetworkRules("aeb000000000001", "nat", IPv4Network("10.64.0.0/16"))
    among = [
        PortRules(f"aep{n:012x}", network.bridge, f"52:54:00:00:{n >> 8:02x}:{n & 255:02x}", groups=(GROUPS[n % 5],))
        for n in range(ports)
    ]
    before = compile([network], among, {GROUPS[0]: compile_group([rule("in:tcp:80")])})
    return before, regrouped(before, {GROUPS[0]: compile_group([rule("in:tcp:81"), rule("out:any")])})


class TestBesideTraffic:
    def test_none_passes_that_no_rules_allow_while_they_are_changed_and_replaced(self, host: Firewalled) -> None:
        lab = host.network(1)
        host.group(GROUPS[0], "in:udp:53", "out:udp:53")
        host.group(GROUPS[1], "in:tcp:22")
        web, other = host.guest(lab, 2, groups=(GROUPS[0],)), host.guest(lab, 3)
        stop = threading.Event()

        def rewrite() -> None:
            turns = 0
            while not stop.is_set():
                turns += 1
                if turns % 3 == 0:
                    host.replace()
                elif turns % 3 == 1:
                    host.bear(web, GROUPS[0], GROUPS[1])
                else:
                    host.group(GROUPS[0], "in:udp:53", "out:udp:53", *(["in:tcp:1"] * (turns % 5)))
                    host.bear(web, GROUPS[0])

        writer = threading.Thread(target=rewrite)
        writer.start()
        try:
            seen: list[bytes] = []
            for number in range(1500):
                name = f"number {number:5}.".encode()
                other.send(other.udp(web.ipv4, b"forbidden", mac=web.mac, ports=(9, 54)))
                # One may be lost in the instant of a change; of three in a row one arrives.
                other.send(*(other.udp(web.ipv4, name, mac=web.mac, ports=(9, 53)) for _ in range(3)))
                seen += web.until(name)
                web.send(web.udp(other.ipv4, b"forbidden", mac=other.mac, ports=(9, 54)))
                web.send(*(web.udp(other.ipv4, name, mac=other.mac, ports=(53, 9)) for _ in range(3)))
                seen += other.until(name)
        finally:
            stop.set()
            writer.join()
        assert not any(b"forbidden" in frame for frame in seen)


class TestTexts:
    @pytest.mark.parametrize("seed", range(4))
    def test_nft_takes_every_set_of_rules(self, host: Firewalled, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        groups = {f"{number:016x}": random_group(chance, 8) for number in range(500)}
        text = replace_all(compile((), (), groups))
        checked = subprocess.run(["nft", "-c", "-f", "-"], input=text, text=True, capture_output=True, check=False)
        assert checked.stderr == ""

    def test_nft_takes_as_many_forwards_as_there_are_ports(self, host: Firewalled) -> None:
        none, many = led(0), led(20_000)
        for text in (replace_all(none) + delta(none, many), replace_all(many) + delta(many, none)):
            checked = subprocess.run(["nft", "-c", "-f", "-"], input=text, text=True, capture_output=True, check=False)
            assert checked.stderr == ""

    def test_a_forward_is_elements_in_one_small_text(self) -> None:
        for before, after in ((1000, 1001), (1001, 1000)):
            text = delta(led(before), led(after))
            assert len(text) < 600
            assert {line.split()[1] for line in text.splitlines()} == {"element"}
            # Of each family what leads the first packet, and what may go on.
            assert len(text.splitlines()) == 4

    @pytest.mark.parametrize(
        "wrong",
        [
            "in:tcp:0",
            "in:tcp:65536",
            "in:tcp:80-79",
            "in:tcp:80,80",
            "in:tcp:80 accept; drop",
            "in:icmp:nothing",
            "in:any:80",
            "in:any:from=10.0.0.1/8",
            "in:any:from=group/x",
            "in:any:from=fe80::%eth0/64",
            "in:tcp:٣",
        ],
    )
    def test_what_is_not_canonical_reaches_no_text(self, wrong: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            compile_group([rule(wrong)])


def led(forwards: int) -> Ruleset:
    """A ruleset of one port, to which so many of the host lead."""
    network = NetworkRules("aeb000000000001", "nat", IPv4Network("10.64.0.0/16"))
    own = (IPv6Address("fe80::1"), IPv6Address("fd00::7"))
    every = tuple(ForwardRules("tcp", None, number, 80) for number in range(1, forwards + 1))
    port = PortRules("aep000000000001", network.bridge, "52:54:00:00:00:01", IPv4Address("10.64.0.7"), own)
    return compile([network], [replace(port, forwards=every)])


def comes(one: FakeGuest, other: FakeGuest, dport: int) -> bool:
    one.send(one.tcp(other.ipv4, SYN, mac=other.mac, ports=(9, dport), at=(1, 0)))
    return bool(other.received())


@ONLY_KERNEL
class TestRefusals:
    async def test_what_nft_refuses_changes_nothing_and_is_said_in_its_words(
        self, world: World, process: Process, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert isinstance(world, Kernel)
        await process.ensure()
        driver, one = process.driver, GROUPS[0]
        await driver.apply_group(one, [rule("in:tcp:80")])
        await driver.apply_rules(WEB, VmRules((one,)))
        await driver.open(WEB, [port(WEB)], VmRules((one,)))
        before, bears = chains(), world.grouped()
        monkeypatch.setattr(groups_of_driver, "compile_group", lambda rules: GroupRules(("iifname @nothing accept",)))
        for group_id in (one, GROUPS[1]):
            with pytest.raises(Fault, match="No such file or directory"):
                await driver.apply_group(group_id, [])
            assert (chains(), world.grouped()) == (before, bears)
        monkeypatch.undo()
        # What comes next begins from what stands.
        await driver.apply_group(GROUPS[2], [rule("in:tcp:81")])
        assert world.groups() == {one, GROUPS[2]}
        await driver.remove_group(GROUPS[2])
        assert (chains(), world.grouped()) == (before, bears)

    async def test_rules_that_mean_nothing_are_a_fault_and_at_a_start_allow_nothing(
        self, world: World, process: Process
    ) -> None:
        await process.ensure()
        with pytest.raises(Fault, match="no type of ICMP"):
            await process.driver.apply_group(GROUPS[0], [rule("in:icmp:nothing")])
        assert world.groups() == set()
        process.driver.restore_groups({GROUPS[0]: [rule("in:icmp:nothing")], GROUPS[1]: [rule("in:tcp:80")]})
        await process.driver.reconcile({LAB: state()})
        await process.driver.restore({})
        assert world.groups() == {GROUPS[0], GROUPS[1]}
        assert [line for line in chains() if "accept" in line and "dport" in line] == ["tcp dport 80 accept"]


def chains() -> list[str]:
    """The chains of groups, and what leads to them."""
    said = subprocess.run(["nft", "list", "table", "bridge", "aetherscale"], capture_output=True, text=True, check=True)
    blocks = [block for block in said.stdout.split("\n\n") if re.search(r"(chain|set) [gsmc]_[0-9a-f]{16}", block)]
    return [line.strip() for block in sorted(blocks) for line in block.splitlines()]
