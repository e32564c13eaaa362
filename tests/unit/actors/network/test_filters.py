"""Who else drops what passes the host: told from what `nft list chains` and iptables-legacy print."""

from __future__ import annotations

from typing import Final

import pytest
from msgspec.structs import replace

from aetherscale.actors.network import filters
from aetherscale.actors.network.filters import Dropping, dropping, legacy_dropping

CALLS = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")


def table(name: str, *chains: str) -> str:
    """A table as `nft list chains` prints it; a chain is its name, and after `:` what a base chain has."""
    lines = [f"table {name} {{"]
    for chain in chains:
        name, _, hook = chain.partition(":")
        lines += [f"\tchain {name} {{", *([f"\t\ttype {hook}"] if hook else []), "\t}"]
    return "\n".join([*lines, "}", ""])


DROP = "filter hook forward priority filter; policy drop;"
ACCEPT = "filter hook forward priority filter; policy accept;"
SENT = "filter hook output priority filter; policy drop;"


@pytest.mark.parametrize(
    ("chains", "found"),
    [
        ("", []),
        (table("ip filter", f"FORWARD:{ACCEPT}"), []),
        (table("ip filter", "INPUT:filter hook input priority filter; policy drop;"), []),
        (table("ip filter", f"FORWARD:{DROP}"), [Dropping("ip", "filter", "FORWARD", "")]),
        (table("ip filter", f"FORWARD:{DROP}", "DOCKER-USER"), [Dropping("ip", "filter", "FORWARD", "docker")]),
        (table("ip6 filter", "DOCKER-USER", f"FORWARD:{DROP}"), [Dropping("ip6", "filter", "FORWARD", "docker")]),
        (table("ip filter", f"FORWARD:{ACCEPT}", "DOCKER-USER"), []),
        # The policy is ufw's, and so is the place for a rule, whoever else is in the table.
        (
            table("ip filter", "DOCKER-USER", f"FORWARD:{DROP}", "ufw-user-forward"),
            [Dropping("ip", "filter", "FORWARD", "ufw")],
        ),
        (table("ip6 filter", f"FORWARD:{DROP}", "ufw6-before-forward"), [Dropping("ip6", "filter", "FORWARD", "ufw")]),
        (
            table("inet firewalld", "filter_FORWARD:filter hook forward priority filter + 10; policy accept;"),
            [Dropping("inet", "firewalld", "filter_FORWARD", "firewalld")],
        ),
        (table("inet firewalld", "filter_INPUT:filter hook input priority filter + 10; policy accept;"), []),
        (table("bridge mine", "f:filter hook forward priority 0; policy drop;"), [Dropping("bridge", "mine", "f", "")]),
        (table("inet a", "x") + table("inet b", f"y:{DROP}"), [Dropping("inet", "b", "y", "")]),
        (table("arp filter", f"FORWARD:{DROP}"), []),
        (
            table("ip filter", f"FORWARD:{DROP}", f"OUTPUT:{SENT}", "ufw-user-output"),
            [Dropping("ip", "filter", "FORWARD", "ufw"), Dropping("ip", "filter", "OUTPUT", "ufw", hook="output")],
        ),
        (table("ip filter", f"OUTPUT:{SENT}", "DOCKER-USER"), [Dropping("ip", "filter", "OUTPUT", "", hook="output")]),
        (table("inet mine", f"o:{SENT}"), [Dropping("inet", "mine", "o", "", hook="output")]),
        (table("inet aetherscale", f"ours:{SENT}"), []),
        # A frame that the host sends into a bridge of ours has passed its chains for packets.
        (table("bridge mine", f"o:{SENT}"), []),
        (table("bridge aetherscale", f"ours:{DROP}"), []),
        (table("inet aetherscale", f"ours:{DROP}"), []),
    ],
)
def test_who_drops(chains: str, found: list[Dropping]) -> None:
    assert dropping(chains) == found


def rules(table: str, **chains: str) -> str:
    """A table as `nft list table` prints it."""
    lines = [f"table {table} {{"]
    for chain, text in chains.items():
        lines += [f"\tchain {chain} {{", *(f"\t\t{rule}" for rule in text.split("; ")), "\t}", ""]
    return "\n".join([*lines, "}", ""])


IN: Final = 'oifname "aeb*" counter packets 0 bytes 0 accept'
ANSWERS: Final = 'oifname "aeb*" ct state established,related accept'


@pytest.mark.parametrize(
    ("text", "drops"),
    [
        ("", "all"),
        (ANSWERS, "all"),
        (IN, "all"),
        ('iifname "aebx" accept', "all"),
        ('iifname "aeb*" accept', "inward"),
        (f'iifname "aeb*" accept; {ANSWERS}', "inward"),
        ('iifname "aep*" accept', "inward"),
        (f'iifname "aeb*" accept; {IN}', "nothing"),
        (f'iifname "aeb*" counter packets 1 bytes 2 goto filter_FWD_trusted; {IN}', "nothing"),
    ],
)
@pytest.mark.parametrize("by", ["itself", "a jump", "two"])
def test_who_has_rules_for_our_devices_is_not_told_of(text: str, drops: str, by: str) -> None:
    there = {
        "itself": {"FORWARD": text},
        "a jump": {"FORWARD": "ct state invalid drop; jump DOCKER-USER", "DOCKER-USER": text},
        "two": {"y": "goto FORWARD", "user": text, "FORWARD": "jump before", "before": "jump FORWARD; goto user"},
    }[by]
    docker, mine = Dropping("ip", "filter", "FORWARD", "docker"), Dropping("inet", "b", "y", "")
    assert filters.listings([docker, mine]) == ["inet b", "ip filter"]
    still = {"all": [docker], "inward": [replace(docker, begins_inside=False)], "nothing": []}[drops]
    assert filters.unanswered([docker, mine], {"ip filter": rules("ip filter", **there)}) == [*still, mine]


def test_a_rule_of_a_chain_that_is_not_reached_lets_nothing_pass() -> None:
    forward, output = Dropping("ip", "filter", "FORWARD", ""), Dropping("ip", "filter", "OUTPUT", "", hook="output")
    both = f'iifname "aeb*" accept; {IN}'
    led = "ct status dnat counter packets 0 bytes 0 accept"
    for table, still in (
        (rules("ip filter", FORWARD=both, OUTPUT="jump elsewhere"), [output]),
        (rules("ip filter", FORWARD="", OUTPUT=f"{IN}; {led}"), [forward]),
        (rules("ip filter", FORWARD="jump user", user=both, OUTPUT="jump sent", sent=f"{IN}; {led}"), []),
        (rules("ip filter", FORWARD="", OUTPUT="", user=both), [forward, output]),
        (rules("ip filter", FORWARD=both, OUTPUT=ANSWERS), [output]),
        # What a forward leads of the host's own has the loopback for its device in this hook, whichever it leaves by.
        (rules("ip filter", FORWARD=both, OUTPUT=IN), [replace(output, sent=("host-led",))]),
        (rules("ip filter", FORWARD=both, OUTPUT=led), [replace(output, sent=("host",))]),
        (rules("ip filter", FORWARD=both, OUTPUT='oif "lo" accept'), [replace(output, sent=("host",))]),
        (rules("ip filter", FORWARD=both, OUTPUT=f'oifname "lo" accept; {IN}'), []),
    ):
        assert filters.unanswered([forward, output], {"ip filter": table}) == still


@pytest.mark.parametrize(
    "each",
    [Dropping("inet", "firewalld", "filter_FORWARD", "firewalld"), Dropping("bridge", "mine", "f", "")],
)
def test_for_some_a_rule_about_what_comes_from_ours_is_enough(each: Dropping) -> None:
    name = f"{each.family} {each.table}"
    assert filters.unanswered([each], {name: rules(name, **{each.chain: 'iifname "aeb*" accept'})}) == []


@pytest.mark.parametrize(
    ("each", "calls", "families", "ways"),
    [
        (Dropping("ip", "filter", "FORWARD", ""), (), (4,), ("out", "in", "led")),
        (Dropping("ip6", "filter", "FORWARD", ""), CALLS[:1], (6,), ("out", "in", "led")),
        (Dropping("ip", "filter", "FORWARD", ""), CALLS[:1], (4,), ("bridge", "out", "in", "led")),
        (Dropping("inet", "a", "b", ""), CALLS[1:], (4, 6), ("bridge", "out", "in", "led")),
        (Dropping("inet", "a", "b", "", begins_inside=False), CALLS, (4, 6), ("in",)),
        (Dropping("bridge", "a", "b", ""), (), (4, 6), ("bridge",)),
        (Dropping("ip6", "a", "b", "", hook="output"), CALLS, (6,), ("host", "host-led")),
        (Dropping("ip", "a", "b", "", hook="output", sent=("host-led",)), (), (4,), ("host-led",)),
    ],
)
def test_on_which_ways_it_is_an_obstacle(
    each: Dropping, calls: tuple[str, ...], families: tuple[int, ...], ways: tuple[str, ...]
) -> None:
    found, *_ = filters.obstacles([each], calls)
    (told,) = (one for one in filters.findings([each], (), is_known=True) if one.check == filters.CHECK)
    assert (found.families, found.ways, found.what, found.remedy) == (families, ways, told.found, told.remedy)


@pytest.mark.parametrize(("calls", "families"), [(CALLS[:1], (4,)), (CALLS[1:], (6,)), (CALLS, (4, 6))])
def test_where_frames_are_handed_to_the_rules_of_the_host_it_is_one_of_what_comes_back(
    calls: tuple[str, ...], families: tuple[int, ...]
) -> None:
    """Nobody else has to drop anything for it."""
    assert filters.obstacles([], ()) == []
    (found,) = filters.obstacles([], calls)
    (told,) = (one for one in filters.findings([], calls, is_known=True) if one.check == "bridge netfilter")
    assert (found.families, found.ways, found.what, found.remedy) == (families, ("led",), told.found, told.remedy)
    assert "does not reach itself" in found.what


def test_a_name_that_nft_would_take_for_more_is_not_looked_at() -> None:
    assert filters.listings([Dropping("ip", "x; flush ruleset", "FORWARD", "")]) == []


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("-P FORWARD ACCEPT\n-A FORWARD -j DOCKER-USER\n", []),
        ("-P FORWARD DROP\n", [Dropping("ip", "filter", "FORWARD", "", legacy=True)]),
        ("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n", [Dropping("ip", "filter", "FORWARD", "docker", legacy=True)]),
        ("-P FORWARD DROP\n-A FORWARD -j ufw-before-forward\n", [Dropping("ip", "filter", "FORWARD", "ufw", True)]),
        (
            "-P FORWARD DROP\n-A FORWARD -j USER\n-A USER -i aeb+ -j ACCEPT\n-A USER -o aeb+ -j ACCEPT\n",
            [],
        ),
        (
            "-P FORWARD DROP\n-A FORWARD -i aeb+ -j ACCEPT\n-A FORWARD -o aeb+ -m conntrack --ctstate NEW -j ACCEPT\n",
            [Dropping("ip", "filter", "FORWARD", "", legacy=True, begins_inside=False)],
        ),
        ("-P FORWARD DROP\n-A FORWARD -i aebx -j ACCEPT\n", [Dropping("ip", "filter", "FORWARD", "", legacy=True)]),
        (None, [Dropping("ip", "filter", "FORWARD", "", legacy=True, certain=False)]),
        ("-P OUTPUT DROP\n", [Dropping("ip", "filter", "OUTPUT", "", legacy=True, hook="output")]),
        ("-P OUTPUT DROP\n-A OUTPUT -o lo -j ACCEPT\n-A OUTPUT -j ufw-out\n-A ufw-out -o aeb+ -j ACCEPT\n", []),
        (
            "-P FORWARD DROP\n-P OUTPUT DROP\n-A OUTPUT -o aeb+ -j ACCEPT\n-A FORWARD -i aeb+ -j ACCEPT\n",
            [
                Dropping("ip", "filter", "FORWARD", "", legacy=True, begins_inside=False),
                Dropping("ip", "filter", "OUTPUT", "", legacy=True, hook="output", sent=("host-led",)),
            ],
        ),
        (
            "-P FORWARD DROP\n-P OUTPUT DROP\n-A FORWARD -i aeb+ -j ACCEPT\n-A FORWARD -o aeb+ -j ACCEPT\n",
            [Dropping("ip", "filter", "OUTPUT", "", legacy=True, hook="output")],
        ),
    ],
)
def test_who_drops_by_iptables_legacy(said: str | None, found: list[Dropping]) -> None:
    assert legacy_dropping({"iptables-legacy": said}) == found


@pytest.mark.parametrize(
    ("each", "text", "remedy"),
    [
        (
            Dropping("ip", "filter", "FORWARD", "docker"),
            "Docker's chain FORWARD of the table ip filter drops what",
            ("after each boot: iptables -I DOCKER-USER -i aeb+ -j ACCEPT; iptables -I DOCKER-USER -o aeb+ -j ACCEPT"),
        ),
        (
            Dropping("ip6", "filter", "FORWARD", "docker"),
            "Docker's chain FORWARD of the table ip6 filter",
            ("after each boot: ip6tables -I DOCKER-USER -i aeb+ -j ACCEPT; ip6tables -I DOCKER-USER -o aeb+ -j ACCEPT"),
        ),
        (
            Dropping("ip", "filter", "FORWARD", "", legacy=True, certain=False),
            "of iptables-legacy may drop what",
            (
                "after each boot: iptables-legacy -I FORWARD -i aeb+ -j ACCEPT; "
                "iptables-legacy -I FORWARD -o aeb+ -j ACCEPT"
            ),
        ),
        (
            Dropping("ip", "filter", "FORWARD", "ufw"),
            "ufw's chain FORWARD",
            "ufw route allow in on aeb+; ufw route allow out on aeb+",
        ),
        (
            Dropping("ip6", "filter", "OUTPUT", "ufw", hook="output"),
            "ufw's chain OUTPUT of the table ip6 filter drops what the host itself sends to networks of kind nat",
            "ufw allow out on aeb+",
        ),
        (
            Dropping("ip", "filter", "OUTPUT", "", hook="output"),
            "the chain OUTPUT",
            (
                "after each boot: iptables -I OUTPUT -o aeb+ -j ACCEPT; "
                "iptables -I OUTPUT -m conntrack --ctstatus DNAT -j ACCEPT"
            ),
        ),
        (
            Dropping("inet", "mine", "o", "", hook="output"),
            "the chain o of the table inet mine drops what the host itself sends",
            (
                "after each boot: nft 'insert rule inet mine o oifname \"aeb*\" accept'; "
                "nft 'insert rule inet mine o ct status dnat accept'"
            ),
        ),
        (
            Dropping("inet", "mine", "o", "", hook="output", sent=("host-led",)),
            "drops what the host itself sends to its ports that lead to VMs",
            "after each boot: nft 'insert rule inet mine o ct status dnat accept'",
        ),
        (
            Dropping("inet", "firewalld", "filter_FORWARD", "firewalld"),
            "firewalld's chain filter_FORWARD",
            "firewall-cmd --permanent --zone=trusted --add-interface=aeb+; firewall-cmd --reload",
        ),
        (
            Dropping("inet", "mine", "f", ""),
            "the chain f of the table inet mine drops what networks of kind nat",
            (
                "after each boot: nft 'insert rule inet mine f iifname \"aeb*\" accept'; "
                "nft 'insert rule inet mine f oifname \"aeb*\" accept'"
            ),
        ),
        (
            Dropping("bridge", "mine", "f", ""),
            "the chain f of the table bridge mine drops frames between VMs",
            (
                "after each boot: nft 'insert rule bridge mine f iifname \"aep*\" accept'; "
                "nft 'insert rule bridge mine f oifname \"aep*\" accept'"
            ),
        ),
    ],
)
def test_what_to_type(each: Dropping, text: str, remedy: str) -> None:
    (told,) = filters.findings([each], (), is_known=True)
    assert told.status == "warning"
    assert text in told.found
    assert told.remedy == remedy


def test_nobody_drops() -> None:
    (told,) = filters.findings([], (), is_known=True)
    assert told.status == "ok"
    assert list(filters.findings([], (), is_known=False)) == [], "nobody looked"


@pytest.mark.parametrize(
    ("family", "is_known", "may_drop"),
    [("ip", True, True), ("inet", True, True), ("bridge", True, False), ("", True, False), ("", False, True)],
)
def test_frames_in_chains_of_the_host_count(family: str, is_known: bool, may_drop: bool) -> None:
    """Of others, which may drop them; and ours, where a forward then leads a VM to itself no more."""
    found = [Dropping(family, "filter", "FORWARD", "")] if family else []
    (told,) = (each for each in filters.findings(found, CALLS, is_known=is_known) if each.check == "bridge netfilter")
    assert told.status == "warning"
    assert ("which may drop it" in told.found) is may_drop
    assert ("a VM does not reach itself by a port of the host" in told.found) is not may_drop
    assert told.remedy.endswith("sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
