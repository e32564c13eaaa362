"""The rules as text: what is refused, what a delta says and how much, and that deltas add up to the whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aetherscale.actors.network.model.chains import ANSWERS_BY_MARK, Drop
from aetherscale.actors.network.model.ruleset import (
    ForwardRules,
    NetworkRules,
    PortRules,
    Ruleset,
    changed,
    compile,
    delta,
    replace_all,
)
from tests.support.kernel_elements import carry_out, elements_of

ISOLATED = NetworkRules("aeb000000000001", "isolated", None, IPv6Network("fd00:1::/64"))
NAT = NetworkRules("aeb000000000002", "nat", IPv4Network("10.64.2.0/24"), IPv6Network("fd00:2::/64"))
LAN = NetworkRules("br0", "bridged")
NETWORKS = (ISOLATED, NAT, LAN)
EMPTY = compile((), ())
GLOBAL = IPv6Address("fd00:1::2")


def port(number: int, network: NetworkRules = ISOLATED, **changes: Any) -> PortRules:
    rules = PortRules(
        f"aep{number:012x}",
        network.bridge,
        f"52:54:00:00:{number >> 8 & 255:02x}:{number & 255:02x}",
        IPv4Address("10.64.2.2") + number,
        (IPv6Address("fe80::2") + number, GLOBAL + number),
    )
    return replace(rules, **changes)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "name",
        [
            "",
            "aep",
            "eth0",
            "aep00000000000",
            "aep0000000000000",
            "AEP000000000001",
            "aep00000000000A",
            "aep00000000000g",
            "aep000000000001\n",
            ' aep000000000001"',
            "aep٠٠٠٠٠٠٠٠٠٠٠١",
            'aep" accept #12',
            None,
            b"aep000000000001",
        ],
    )
    def test_a_tap_that_is_not_of_our_pattern(self, name: Any) -> None:
        with pytest.raises(ValueError, match="a tap is called by"):
            port(1, tap=name)

    @pytest.mark.parametrize("kind", ["isolated", "nat", "bridged"])
    @pytest.mark.parametrize("name", ["", "br 0", "br0\n", 'br"', "br0;", "x" * 16, "aep000000000001", "0br", "bré"])
    def test_a_bridge_that_is_not_of_its_kinds_pattern(self, name: str, kind: Any) -> None:
        with pytest.raises(ValueError, match="a bridge is called by"):
            NetworkRules(name, kind)
        with pytest.raises(ValueError, match="a bridge is called by"):
            port(1, bridge=name)

    def test_a_bridge_of_ours_for_a_bridged_network_and_one_of_the_host_for_another(self) -> None:
        for name, kind in (("aeb000000000001", "bridged"), ("br0", "nat"), ("br0", "isolated")):
            with pytest.raises(ValueError, match="a bridge is called by"):
                NetworkRules(name, kind)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "mac",
        [
            "52:54:00:00:00",
            "52:54:00:00:00:0G",
            "52:54:00:00:00:AA",
            "52-54-00-00-00-01",
            "53:54:00:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "52:54:00:00:00:01 accept",
            "52:54:00:00:00:01\n",
        ],
    )
    def test_a_mac_that_is_none_or_not_in_its_form(self, mac: str) -> None:
        with pytest.raises(ValueError, match=r"a MAC|the MAC"):
            port(1, mac=mac)

    @pytest.mark.parametrize(
        "changes",
        [
            {"ipv4": "10.64.2.3"},
            {"ipv4": IPv6Address("fd00::1")},
            {"ipv4": IPv4Address(0)},
            {"ipv4": IPv4Address("127.0.0.1")},
            {"ipv4": IPv4Address("224.0.0.1")},
            {"ipv6": ("fd00::1",)},
            {"ipv6": (IPv4Address("10.0.0.1"),)},
            {"ipv6": (IPv6Address("::"),)},
            {"ipv6": (IPv6Address("ff02::1"),)},
            {"ipv6": (IPv6Address("::1"),)},
            {"ipv6": (IPv6Address("fe80::1%eth0 accept"),)},
            {"allowed": ("10.0.0.0/8",)},
            {"allowed": (IPv4Address("10.0.0.1"),)},
            {"allowed": (IPv6Network("fe80::%x accept/64"),)},
        ],
        ids=str,
    )
    def test_an_address_that_is_text_or_of_no_host_or_of_a_zone(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"address|network"):
            port(1, **changes)

    @pytest.mark.parametrize("kind", ["", "NAT", "routed", None])
    def test_a_kind_that_is_none(self, kind: Any) -> None:
        with pytest.raises(ValueError, match="isolated, nat, bridged or public"):
            NetworkRules("aeb000000000001", kind)

    def test_a_prefix_that_is_text(self) -> None:
        with pytest.raises(ValueError, match="IPv4 network"):
            NetworkRules("aeb000000000001", "nat", "10.0.0.0/24")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="IPv6 prefix"):
            NetworkRules("aeb000000000001", "nat", None, IPv4Network("10.0.0.0/24"))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("networks", "ports", "words"),
        [
            ([NAT, NAT], [], "two networks have the bridge"),
            ([NAT, replace(NAT, bridge="aeb000000000009")], [], "overlap"),
            ([NAT, NetworkRules("aeb000000000009", "nat", IPv4Network("10.64.0.0/16"))], [], "overlap"),
            ([NAT, NetworkRules("aeb000000000009", "nat", None, IPv6Network("fd00::/16"))], [], "overlap"),
            ([ISOLATED], [port(1), port(1)], "two ports have the tap"),
            ([ISOLATED], [port(1), port(2, mac=port(1).mac)], "two ports in aeb000000000001 have 52:54"),
            ([ISOLATED], [port(1), port(2, ipv4=port(1).ipv4)], "two ports in aeb000000000001 have"),
            ([ISOLATED], [port(1), port(2, ipv6=port(1).ipv6)], "two ports in aeb000000000001 have"),
            ([ISOLATED], [port(1, ipv6=(GLOBAL, GLOBAL))], "or one has it twice"),
            ([LAN], [port(1)], "is in no network"),
        ],
    )
    def test_what_contradicts_itself(
        self, networks: Sequence[NetworkRules], ports: Sequence[PortRules], words: str
    ) -> None:
        with pytest.raises(ValueError, match=words):
            compile(networks, ports)

    def test_not_the_same_address_in_two_networks(self) -> None:
        both = compile(NETWORKS, [port(1), port(2, NAT, mac=port(1).mac, ipv4=port(1).ipv4, ipv6=port(1).ipv6)])
        assert len(both.ports) == 2


class TestTheText:
    def test_is_the_same_in_whatever_order_it_is_told(self) -> None:
        ports = [port(number, network) for number, network in enumerate(NETWORKS * 3)]
        one, other = compile(NETWORKS, ports), compile(NETWORKS[::-1], ports[::-1])
        assert one == other
        assert replace_all(one) == replace_all(other)
        assert delta(one, other) == delta(EMPTY, EMPTY) == ""
        assert delta(EMPTY, one) == delta(EMPTY, other)

    def test_has_an_own_bridge_by_name_and_one_of_the_host_never(self) -> None:
        lan = NetworkRules("lan.of-the_host", "bridged", IPv4Network("192.168.7.0/24"))
        text = replace_all(compile([lan, NAT], [port(1, lan)]))
        assert lan.bridge not in text
        assert "192.168.7" not in text
        assert f'"{NAT.bridge}" . 10.64.2.0/24' in text

    def test_is_of_ascii_and_of_rules_that_do_not_depend_on_ports(self) -> None:
        full = replace_all(compile(NETWORKS, [port(number) for number in range(20)]))
        rules = re.sub(r"    elements = {.*}\n", "", full)
        assert rules == replace_all(EMPTY)
        assert full.isascii()

    def test_takes_another_line_for_answers(self) -> None:
        conntrack = "ct state established,related accept"
        assert replace_all(EMPTY, conntrack) == replace_all(EMPTY).replace(ANSWERS_BY_MARK, conntrack)
        assert replace_all(EMPTY, conntrack) != replace_all(EMPTY)

    def test_begins_each_family_by_deleting_our_table(self) -> None:
        text = replace_all(EMPTY)
        for family in ("bridge", "inet", "arp"):
            head = f"add table {family} aetherscale\ndelete table {family} aetherscale\ntable {family} aetherscale {{\n"
            assert text.count(head) == 1

    def test_joins_allowed_networks_that_overlap(self) -> None:
        names = ("10.0.0.0/9", "10.128.0.0/9", "10.7.0.0/16")
        allowed = (*map(IPv4Network, names), IPv6Network("fd00::/17"), IPv6Network("fd01:8000::/17"))
        has = elements_of(replace_all(compile([ISOLATED], [port(1, allowed=allowed)])))
        assert list(has["allowed4"]) == ['"aep000000000001" . 10.0.0.0/8']
        assert len(has["allowed6"]) == len(has["allowed_targets"]) == 2
        assert (
            '"aep000000000001" . 0xfd000000000000000000000000000000-0xfd007fffffffffffffffffffffffffff'
            in has["allowed_targets"]
        )


class TestADelta:
    @pytest.mark.parametrize("count", [0, 1, 300])
    def test_has_the_size_of_what_changes(self, count: int) -> None:
        others = [port(number) for number in range(count)]
        before, after = compile(NETWORKS, others), compile(NETWORKS, [*others, port(900)])
        comes, goes = delta(before, after), delta(after, before)
        assert len(comes) < 1000
        assert len(goes) < 2000
        assert comes == delta(compile(NETWORKS, []), compile(NETWORKS, [port(900)]))
        assert goes == delta(compile(NETWORKS, [port(900)]), compile(NETWORKS, []))
        assert len(re.findall(r"aep\w+", comes)) == 11

    def test_of_a_port_that_goes_takes_its_counters(self) -> None:
        text = delta(compile(NETWORKS, [port(1)]), compile(NETWORKS, []))
        added, deleted = (line.partition("drops ")[2] for line in text.splitlines()[:2])
        assert added == deleted == "{ " + ", ".join(f'"aep000000000001" . {kind:#x}' for kind in Drop) + " }"

    def test_of_an_address_has_that_address_alone(self) -> None:
        text = delta(compile(NETWORKS, [port(1)]), compile(NETWORKS, [port(1, ipv4=IPv4Address("10.64.2.99"))]))
        assert text == (
            'delete element bridge aetherscale sources4 { "aep000000000001" . 52:54:00:00:00:01 . 10.64.2.3 }\n'
            'add element bridge aetherscale sources4 { "aep000000000001" . 52:54:00:00:00:01 . 10.64.2.99 }\n'
        )

    def test_of_a_network_that_changes_its_kind_moves_its_ports(self) -> None:
        before = compile([NAT], [port(1, NAT)])
        after = compile([replace(NAT, kind="isolated")], [port(1, NAT)])
        assert 'delete element bridge aetherscale from_host { "aep000000000001" }' in delta(before, after)
        assert 'from_host { "aep000000000001" : jump from_isolated }' in delta(before, after)
        assert "delete element inet aetherscale masquerade4 { 10.64.2.0/24 }" in delta(before, after)

    @settings(max_examples=60)
    @given(st.data())
    def test_of_any_comings_and_goings_adds_up_to_the_whole(self, data: st.DataObject) -> None:
        has, kernel = EMPTY, elements_of(replace_all(EMPTY))
        for _ in range(data.draw(st.integers(1, 6))):
            wants = data.draw(rulesets())
            carry_out(delta(has, wants), kernel)
            has = wants
            assert kernel == elements_of(replace_all(wants))
        carry_out(delta(has, EMPTY), kernel)
        assert kernel == elements_of(replace_all(EMPTY))


class TestAChange:
    @given(st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)))
    def test_gives_what_would_be_compiled(self, before: set[int], gone: set[int], come: set[int]) -> None:
        gone &= before
        come -= before - gone
        was = compile(NETWORKS, map(port, before))
        found = changed(was, [port(number).tap for number in gone], map(port, come))
        assert found == compile(NETWORKS, map(port, (before - gone) | come))
        assert was == compile(NETWORKS, map(port, before))

    @pytest.mark.parametrize(
        ("comes", "words"),
        [
            (port(1), "two ports have the tap"),
            (port(2, mac=port(1).mac), "two ports in aeb000000000001 have 52:54"),
            (port(2, ipv4=port(1).ipv4), "two ports in aeb000000000001 have 0x"),
            (port(2, ipv6=port(1).ipv6), "two ports in aeb000000000001 have fe80"),
            (port(2, bridge="aeb00000000000f"), "is in no network"),
        ],
    )
    def test_to_what_contradicts_itself_is_refused(self, comes: PortRules, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            changed(compile(NETWORKS, [port(1)]), (), [comes])

    def test_lets_another_have_what_one_had_that_is_gone(self) -> None:
        heir = port(2, mac=port(1).mac, ipv4=port(1).ipv4, ipv6=port(1).ipv6)
        assert changed(compile(NETWORKS, [port(1)]), [port(1).tap], [heir]) == compile(NETWORKS, [heir])


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    """Few ports in few networks, so that the same ones come again, the same or changed."""
    nat = replace(NAT, kind=draw(st.sampled_from(["nat", "isolated"])), ipv6=draw(st.sampled_from([NAT.ipv6, None])))
    networks = [ISOLATED, nat, LAN]
    ports: list[PortRules] = []
    for number in draw(st.sets(st.integers(1, 4))):
        rules = port(number, draw(st.sampled_from(networks)))
        changes: dict[str, Any] = {
            "mac": draw(st.sampled_from([rules.mac, f"02:00:00:00:00:{number:02x}"])),
            "ipv4": draw(st.sampled_from([rules.ipv4, None, IPv4Address(f"10.9.9.{number}")])),
            "ipv6": rules.ipv6[: draw(st.integers(0, 2))],
            "allowed": tuple(draw(st.sets(st.sampled_from(ALLOWED)))),
            # No two ports have one of the host.
            "forwards": tuple(
                ForwardRules(protocol, address, 8000 + number, guest_port, begins)
                for protocol, address, guest_port, begins in draw(
                    st.lists(FORWARDS, max_size=3, unique_by=lambda drawn: drawn[:2])
                )
            ),
        }
        ports.append(replace(rules, **changes))
    return compile(draw(st.permutations(networks)), draw(st.permutations(ports)))


PROTOCOLS: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp")
FORWARDS = st.tuples(
    st.sampled_from(PROTOCOLS),
    st.sampled_from([None, IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")]),
    st.sampled_from([80, 81]),
    st.booleans(),
)
ALLOWED = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("10.7.0.0/16"),
    IPv4Network("0.0.0.0/0"),
    IPv6Network("fd00::/8"),
    IPv6Network("fd00:7::/32"),
    IPv6Network("2001:db8::7/128"),
)


def test_what_nft_would_list_by_a_name_that_it_does_not_read_again_is_looked_up_in_a_chain_of_its_own() -> None:
    lines = replace_all(EMPTY, ANSWERS_BY_MARK).splitlines()
    raw = [line for line in lines if "@th,64,128" in line and "typeof" not in line]
    assert raw
    assert [line for line in raw if "icmpv6" in line] == []
