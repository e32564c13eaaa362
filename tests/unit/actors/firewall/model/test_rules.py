"""Rules as callers write them: which form each has, and what is refused with the field that is wrong."""

from __future__ import annotations

import subprocess
from ipaddress import ip_network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aetherscale.actors.firewall.model.commands import ICMP_TYPES, MOST_RANGES, Rule, RuleOptions
from aetherscale.actors.firewall.model.rules import parse_rules, short
from aetherscale.kernel.errors import Reason, Refused

T = RuleOptions

PREFIXES = st.one_of(
    st.tuples(st.integers(0x0A000000, 0x0AFFFFFF), st.integers(8, 32)),
    st.tuples(st.integers(0xFD << 120, (0xFE << 120) - 1), st.integers(8, 128)),
).map(lambda drawn: str(ip_network(drawn, strict=False)))
PORTS = st.lists(
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: f"{min(pair)}-{max(pair)}")
    | st.integers(1, 65535),
    max_size=MOST_RANGES,
)
WHOM: st.SearchStrategy[dict[str, str]] = st.one_of(
    st.just({}), PREFIXES.map(lambda cidr: {"cidr": cidr}), st.just({"group": "web"})
)
RULES = st.one_of(
    st.builds(
        lambda direction, protocol, ports, whom: T(direction, protocol, ports=ports, **whom),
        st.sampled_from(["in", "out"]),
        st.sampled_from(["tcp", "udp"]),
        PORTS,
        WHOM,
    ),
    st.builds(
        lambda direction, types, whom: T(direction, "icmp", types=types, **whom),
        st.sampled_from(["in", "out"]),
        st.lists(st.sampled_from(sorted(set(ICMP_TYPES) - {"packet-too-big"})), max_size=9),
        WHOM,
    ),
    st.builds(lambda direction, whom: T(direction, "any", **whom), st.sampled_from(["in", "out"]), WHOM),
)


def rule(given: str | RuleOptions) -> Rule:
    [parsed] = parse_rules([given])
    return parsed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in:tcp:80,443", Rule("in", "tcp", ports=("80", "443"))),
        ("in:tcp:22:from=10.0.0.0/8", Rule("in", "tcp", ports=("22",), cidr="10.0.0.0/8")),
        ("in:any:from=group/web", Rule("in", "any", group="web")),
        ("in:any", Rule("in", "any")),
        ("in:icmp", Rule("in", "icmp")),
        ("in:icmp:echo-request", Rule("in", "icmp", types=("echo-request",))),
        ("in:icmp:time-exceeded,echo-reply,echo-reply", Rule("in", "icmp", types=("echo-reply", "time-exceeded"))),
        ("out:udp:53:to=fd00::/8", Rule("out", "udp", ports=("53",), cidr="fd00::/8")),
        ("out:tcp:to=FD00:0::1", Rule("out", "tcp", cidr="fd00::1/128")),
        ("in:tcp:from=10.1.2.3", Rule("in", "tcp", cidr="10.1.2.3/32")),
        ("in:udp:from=0.0.0.0/0", Rule("in", "udp", cidr="0.0.0.0/0")),
        ("in:tcp:1-65535", Rule("in", "tcp", ports=("1-65535",))),
        ("in:tcp:90,80-85,86,1,84-88,3-3", Rule("in", "tcp", ports=("1", "3", "80-88", "90"))),
    ],
)
def test_a_text_is_a_rule_in_its_canonical_form(text: str, expected: Rule) -> None:
    assert rule(text) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (T("in", "tcp", ports=[80, "8000-8100"]), "in:tcp:80,8000-8100"),
        (T("in", "tcp", ports="443,80"), "in:tcp:80,443"),
        (T("in", "icmp", types="echo-request"), "in:icmp:echo-request"),
        (T("out", "icmp", types=["packet-too-big"], cidr="fd00::/8"), "out:icmp:packet-too-big:to=fd00::/8"),
        (T("in", "any", group="0123456789abcdef"), "in:any:from=group/0123456789abcdef"),
    ],
)
def test_an_object_means_the_same_as_its_text(options: RuleOptions, expected: str) -> None:
    assert short(rule(options)) == expected
    assert rule(expected) == rule(options)


@given(RULES)
def test_the_text_of_a_rule_is_the_rule(options: RuleOptions) -> None:
    parsed = rule(options)
    assert rule(short(parsed)) == parsed


@given(PORTS)
@example([1, 65535])
@example(["1-65535", 7])
@example([80, 81, "83-84", 82])
def test_ranges_are_the_same_ports_in_order_and_neither_overlap_nor_touch(ports: list[int | str]) -> None:
    def numbers(each: int | str) -> range:
        first, _, last = str(each).partition("-")
        return range(int(first), int(last or first) + 1)

    merged = [numbers(each) for each in rule(T("in", "udp", ports=ports)).ports]
    assert {port for each in merged for port in each} == {port for each in ports for port in numbers(each)}
    assert all(one.stop < other.start for one, other in pairwise(merged))


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ("", "direction", "got '', expected in or out"),
        ("inn:tcp", "direction", "got 'inn', expected in or out"),
        ("in", "protocol", "got '', expected one of tcp, udp, icmp, any"),
        ("in:sctp", "protocol", "got 'sctp'"),
        ("in:TCP:80", "protocol", "got 'TCP'"),
        ("in:tcp:", "ports", "got '', expected a port from 1 to 65535, or a range as 8000-8100"),
        ("in:tcp:0", "ports", "got '0', expected a port from 1 to 65535"),
        ("in:tcp:65536", "ports", "got '65536', expected a port"),
        ("in:tcp:99999999999999999999", "ports", "expected a port"),
        ("in:tcp:080", "ports", "got '080', expected a port"),
        ("in:tcp:80 ", "ports", "got '80 ', expected a port"),
        ("in:tcp:٨٠", "ports", "expected a port"),
        ("in:tcp:80-79", "ports", "got '80-79', expected a range that ascends, as 79-80"),
        ("in:tcp:80-", "ports", "got '80-'"),
        ("in:tcp:-1", "ports", "got '-1'"),
        ("in:tcp:1-2-3", "ports", "got '1-2-3'"),
        ("in:tcp:80,,81", "ports", "got ''"),
        (T("in", "tcp", ports=[0]), "ports", "rules[0]: got 0, expected a port"),
        (T("in", "tcp", ports=[-1]), "ports", "got -1"),
        (T("in", "tcp", ports=[80] * (MOST_RANGES + 1)), "ports", f"expected at most {MOST_RANGES}"),
        ("in:tcp:" + ",".join(map(str, range(1, 10_001))), "ports", "got '10000 ports and ranges'"),
        ("in:any:80", "ports", "has ports, which any has none of"),
        (T("in", "icmp", ports=[80]), "ports", "has ports, which icmp has none of"),
        (T("in", "tcp", types=["echo-reply"]), "types", "has types, which tcp has none of"),
        ("in:icmp:8", "types", "got '8', expected one of destination-unreachable, echo-reply"),
        ("in:icmp:", "types", "got ''"),
        ("in:icmp:packet-too-big:from=10.0.0.0/8", "types", "expected a type that IPv4 has"),
        ("in:tcp:80:to=10.0.0.0/8", "direction", "got 'to=10.0.0.0/8', expected from=PREFIX or from=group/NAME"),
        ("out:tcp:80:from=group/web", "direction", "expected to=PREFIX or to=group/NAME, as the direction is out"),
        ("in:tcp:80:10.0.0.0/8", "", "got '10.0.0.0/8', expected from=PREFIX"),
        ("in:tcp:80:443", "", "got '443', expected from=PREFIX"),
        ("in:tcp:from=", "cidr", "got '', expected an address or a prefix"),
        ("in:tcp:from=10.0.0.1/8", "cidr", "expected no bit set behind the prefix, as 10.0.0.0/8"),
        ("in:tcp:from=10.0.0.0/33", "cidr", "got '10.0.0.0/33'"),
        ("in:tcp:from=10.0.0.0/255.0.0.0", "cidr", "expected an address or a prefix"),
        ("in:tcp:from=010.0.0.0/8", "cidr", "expected an address or a prefix"),
        ("in:tcp:from=10.0.0", "cidr", "expected an address or a prefix"),
        ("in:tcp:from=fe80::1%eth0", "cidr", "expected an address or a prefix"),
        ("in:tcp:from=fd00::1/8", "cidr", "expected no bit set behind the prefix, as fd00::/8"),
        ("in:tcp:from=::ffff:10.0.0.1", "cidr", "IPv4-mapped addresses"),
        ("in:tcp:from=::ffff:0:0/96", "cidr", "IPv4-mapped addresses"),
        ("in:tcp:from=224.0.0.0/8", "cidr", "multicast addresses"),
        ("in:tcp:from=ff02::1", "cidr", "multicast addresses"),
        ("in:tcp:from=127.0.0.1", "cidr", "loopback addresses"),
        ("in:tcp:from=255.255.255.255", "cidr", "reserved addresses"),
        ("in:tcp:from=group/", "group", "got '', expected the name or the id of a group"),
        ("in:tcp:from=group/Web", "group", "got 'Web'"),
        ('in:tcp:from=group/a"; drop', "group", "expected the name or the id of a group"),
        ("in:tcp:from=web", "cidr", "got 'web', expected an address or a prefix"),
        (T("in", "tcp", cidr="10.0.0.0/8", group="web"), "group", "names a prefix and a group, expected one of them"),
        ('in:tcp:80 accept; } table x {', "ports", "expected a port"),
        ("in:tcp:80\nfrom=10.0.0.0/8", "ports", "expected a port"),
        ("in:any:from=10.0.0.0/8\n", "cidr", "expected an address or a prefix"),
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused_with_its_field(given: Any, field: str, words: str) -> None:
    ok = "in:any"
    place = "rules[2]" + (f".{field}" if field else "")
    with pytest.raises(Refused) as refused:
        parse_rules([ok, ok, given])
    assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, place)
    assert words.replace("rules[0]", "rules[2]") in refused.value.message


@given(st.text(max_size=40) | st.from_regex(r"(in|out):(tcp|udp|icmp|any)(:.{0,20})?(:(from|to)=.{0,30})?"))
def test_whatever_a_text_is_it_is_a_rule_that_can_be_written_again_or_refused(text: str) -> None:
    refusal, parsed = None, None
    try:
        parsed = rule(text)
    except Refused as refused:
        refusal = refused
    if refusal is not None:
        assert refusal.reason is Reason.BAD_REQUEST
        assert refusal.field.startswith("rules[0]")
    else:
        assert parsed is not None
        assert rule(short(parsed)) == parsed
        assert short(parsed).isascii()


def test_the_numbers_of_types_are_those_that_nft_knows() -> None:
    """By its own tables: `nft describe` lists names and numbers."""
    for family, place in (("icmp", 0), ("icmpv6", 1)):
        try:
            said = subprocess.run(["nft", "describe", family, "type"], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("nft is not installed")
        known = {words[0]: int(words[1]) for line in said.stdout.splitlines() if len(words := line.split()) == 2
                 and words[1].isdigit()}  # fmt: skip
        for name, numbers in ICMP_TYPES.items():
            number = numbers[place]
            assert number is None or known[name] == number, (family, name, known)
