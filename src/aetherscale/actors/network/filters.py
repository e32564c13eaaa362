"""Who else on the host drops what passes it or what it sends, and what to type so that packets of networks pass too.

An accept of ours is no accept of theirs: a packet passes only where every base chain of its hook lets it. Nothing of
others is changed here. Nor is theirs one of ours: what they let in is judged by our rules still.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.network.model.devices import BRIDGE_PREFIX, TAP_PREFIX
from aetherscale.actors.network.model.marks import TABLES
from aetherscale.actors.network.model.views import Obstacle, Way
from aetherscale.kernel.findings import Finding

FIREWALLD: Final = "firewalld"
PROGRAMS: Final[Mapping[str, str]] = {"ip": "iptables", "ip6": "ip6tables"}
FAMILIES: Final = ("ip", "ip6", "inet", "bridge")
LEGACY: Final[Mapping[str, tuple[str, str]]] = {
    "iptables-legacy": ("iptable_filter", "ip"),
    "ip6tables-legacy": ("ip6table_filter", "ip6"),
}
"""Programs whose rules nft does not show: the module of the kernel that has the rules, and their family."""
CHECK: Final = "other filters"
_CALLED: Final[Mapping[str, tuple[str, ...]]] = {
    "ip": ("bridge-nf-call-iptables",),
    "ip6": ("bridge-nf-call-ip6tables",),
    "inet": ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"),
}
"""The settings by which a family is asked about what passes a bridge."""

_OPENING: Final = re.compile(r"\s*(?P<kind>table|chain) (?P<name>.+) \{")
_DROPS: Final = re.compile(r"\s*type filter hook (?P<hook>forward|output) priority .*; policy drop;")
_TO: Final = re.compile(r"\b(?:jump|goto) (\S+)")
_OUT: Final = re.compile(rf'iifname "(?:{BRIDGE_PREFIX}|{TAP_PREFIX})\*"')
"""A rule about whatever comes from our devices."""
_IN: Final = re.compile(rf'oifname "{BRIDGE_PREFIX}\*" (?!ct state)')
"""A rule about whatever goes to them, and not about answers alone."""
_LED: Final = re.compile(r"""(?:oif "?lo"?|oifname "lo"|ct status dnat) (?:counter packets \d+ bytes \d+ )?accept""")
"""A rule about what a forward leads, of what the host sends itself: there its device is still the loopback."""
_LEGACY_OUT: Final = f" -i {BRIDGE_PREFIX}+ "
_LEGACY_IN: Final = re.compile(rf" -o {BRIDGE_PREFIX}\+ -j")
_LEGACY_LED: Final = re.compile(r" (?:-o lo|-m conntrack --ctstatus DNAT) -j ACCEPT")
_LEGACY_RULE: Final = re.compile(r"^-A (\S+)(.*)$", re.MULTILINE)
_PLAIN: Final = re.compile(r"\w+ [\w-]+", re.ASCII)
_JUMP: Final = re.compile(r" -[jg] (\S+)")
_LEGACY_DROPS: Final = re.compile(r"^-P (FORWARD|OUTPUT) (?:DROP|REJECT)$", re.MULTILINE)


Hook = Literal["forward", "output"]


class Dropping(Struct, frozen=True):
    """A base chain of others that drops what passes the host, unless a rule in it accepts."""

    family: str
    table: str
    chain: str
    whose: str
    """`docker`, `ufw`, `firewalld`; "" for somebody whom we do not know."""
    legacy: bool = False
    """Whether it is a chain of iptables-legacy."""
    certain: bool = True
    """Whether it was seen to drop; else its program did not answer, and it may."""
    begins_inside: bool = True
    """Whether it drops what VMs begin; else only what begins outside, and is led to them or let in by groups."""
    hook: Hook = "forward"
    """What it is asked about: what passes the host, or what the host sends itself."""
    sent: tuple[Way, ...] = ("host", "host-led")
    """Of what the host sends, what it drops: what goes to a VM directly, and by a forward."""


def dropping(chains: str) -> list[Dropping]:
    """Those of others in what `nft list chains` prints. What leaves a bridge is asked about on its way alone."""
    found: list[tuple[str, str, str, Hook]] = []
    family, table, chain = "", "", ""
    known: dict[tuple[str, str], set[str]] = {}
    for line in chains.splitlines():
        opening = _OPENING.fullmatch(line)
        if opening is not None and opening["kind"] == "table":
            family, _, table = opening["name"].partition(" ")
        elif opening is not None:
            chain = opening["name"]
            known.setdefault((family, table), set()).add(chain)
            if table == FIREWALLD and chain == "filter_FORWARD":  # it accepts by policy, and rejects by its last rule
                found.append((family, table, chain, "forward"))
        elif (drops := _DROPS.fullmatch(line)) and family in FAMILIES and table not in TABLES:
            if drops["hook"] == "forward":
                found.append((family, table, chain, "forward"))
            elif family != "bridge":
                found.append((family, table, chain, "output"))
    return [
        Dropping(family, table, chain, _whose(table, known[family, table], hook), hook=hook)
        for family, table, chain, hook in found
    ]


def unanswered(found: Sequence[Dropping], tables: Mapping[str, str]) -> list[Dropping]:
    """Those of them that have no rule for devices of ours yet, or none for what goes to them.

    `tables` is `listings`, each as nft lists it.
    """
    return [still for each in found if (still := _still(each, _reached(tables.get(_name(each), ""), each.chain)))]


def _reached(table: str, base: str) -> str:
    """The rules of a base chain, and of the chains that they lead to."""
    chains: dict[str, list[str]] = {}
    rules: list[str] = []
    for line in table.splitlines():
        opening = _OPENING.fullmatch(line)
        if opening is not None:
            rules = chains.setdefault(opening["name"], [])
        else:
            rules.append(line)
    return _closure({chain: "\n".join(rules) for chain, rules in chains.items()}, base, _TO)


def _closure(chains: Mapping[str, str], base: str, to: re.Pattern[str]) -> str:
    """The rules of a chain and of all that it leads to; `to` finds where a rule leads."""
    reached, ahead = {base}, [base]
    while ahead:
        further = set(to.findall(chains.get(ahead.pop(), ""))) - reached
        reached |= further
        ahead += further
    return "\n".join(chains.get(chain, "") for chain in sorted(reached))


def _still(each: Dropping, rules: str) -> Dropping | None:
    """What it drops yet; None for nothing. firewalld accepts whatever a forward leads."""
    if each.hook == "output":
        return _sent(each, is_open=bool(_IN.search(rules)), is_led=bool(_LED.search(rules)))
    if not _OUT.search(rules):
        return each
    open_inward = each.family == "bridge" or each.whose == FIREWALLD or _IN.search(rules)
    return None if open_inward else replace(each, begins_inside=False)


def _sent(each: Dropping, *, is_open: bool, is_led: bool) -> Dropping | None:
    there: tuple[tuple[Way, bool], ...] = (("host", is_open), ("host-led", is_led))
    left = tuple(way for way, passes in there if not passes)
    return replace(each, sent=left) if left else None


def listings(found: Sequence[Dropping]) -> list[str]:
    """Family and name of the tables that are worth a look. What nft would take for something else is none."""
    return sorted({name for each in found if _PLAIN.fullmatch(name := _name(each))})


def legacy_dropping(said: Mapping[str, str | None]) -> list[Dropping]:
    """Those in what each of `LEGACY` answers to `-S`, and that have no rule for devices of ours yet.

    None is where it does not answer, and so may drop too.
    """
    return [each for program, text in said.items() for each in _legacy_dropping(LEGACY[program][1], text)]


def _legacy_dropping(family: str, text: str | None) -> Iterator[Dropping]:
    if text is None:
        yield Dropping(family, "filter", "FORWARD", "", legacy=True, certain=False)
        return
    chains: dict[str, str] = {}
    for chain, rule in _LEGACY_RULE.findall(text):
        chains[chain] = f"{chains.get(chain, '')}{rule}\n"
    there = set(_JUMP.findall(text))
    for base in _LEGACY_DROPS.findall(text):
        rules = _closure(chains, base, _JUMP)
        inside, is_open = _LEGACY_OUT in rules, _LEGACY_IN.search(rules) is not None
        if base == "OUTPUT":
            sent = Dropping(family, "filter", base, _whose("", there, "output"), legacy=True, hook="output")
            if still := _sent(sent, is_open=is_open, is_led=bool(_LEGACY_LED.search(rules))):
                yield still
        elif not (inside and is_open):
            whose = _whose("", there, "forward")
            yield Dropping(family, "filter", base, whose, legacy=True, begins_inside=not inside)


_FRAMES_DROPPED: Final = (
    "what VMs of one network send each other passes the host's chains for forwarded packets too, which may drop it"
)
_FRAMES_LED: Final = (
    "a VM does not reach itself by a port of the host that leads to it, and its neighbors reach it there as if "
    "they had asked it directly; those that bear groups get no answers"
)


def obstacles(found: Sequence[Dropping], calls: tuple[str, ...]) -> list[Obstacle]:
    """The same, for those who ask about one packet; `calls` as in `findings`."""
    others = [Obstacle(_families(each), _ways(each, calls), _sentence(each), _remedy(each)) for each in found]
    if calls:
        families = tuple(version for family, version in (("ip", 4), ("ip6", 6)) if set(_CALLED[family]) & set(calls))
        others.append(Obstacle(families, ("led",), f"{', '.join(calls)}: {_FRAMES_LED}", _calls_off(calls)))
    return others


def _families(each: Dropping) -> tuple[int, ...]:
    return {"ip": (4,), "ip6": (6,)}.get(each.family, (4, 6))


def _ways(each: Dropping, calls: tuple[str, ...]) -> tuple[Way, ...]:
    if each.family == "bridge":
        return ("bridge",)
    if each.hook == "output":
        return each.sent
    within: tuple[Way, ...] = ("bridge",) if any(call in _CALLED[each.family] for call in calls) else ()
    return (*within, "out", "in", "led") if each.begins_inside else ("in",)


def findings(found: Sequence[Dropping], calls: tuple[str, ...], *, is_known: bool) -> Iterator[Finding]:
    """For each chain of others what to type; `calls` are the `bridge-nf-call-*` that are on.

    Without `is_known` nobody could look who else filters.
    """
    for each in found:
        yield Finding(CHECK, "warning", _sentence(each), _remedy(each))
    if calls:
        routed = [each for each in found if set(_ways(each, calls)) >= {"bridge", "out"}]
        what = _FRAMES_DROPPED if routed or not is_known else _FRAMES_LED
        yield Finding("bridge netfilter", "warning", f"{', '.join(calls)}: {what}", _calls_off(calls))
    if is_known and not found:
        yield Finding(
            CHECK, "ok", "no filter of others drops by policy what networks forward, nor what the host sends to them"
        )


def _calls_off(calls: tuple[str, ...]) -> str:
    off = " ".join(f"net.bridge.{each}=0" for each in calls)
    return f"if nothing else on this host needs it, after each boot: sysctl -w {off}"


def _name(each: Dropping) -> str:
    return f"{each.family} {each.table}"


def _sentence(each: Dropping) -> str:
    whose = {"docker": "Docker's", "ufw": "ufw's", FIREWALLD: "firewalld's"}.get(each.whose, "the")
    by = " of iptables-legacy" if each.legacy else ""
    drops = "drops" if each.certain else "may drop"
    what = "what networks of kind nat send and get"
    if each.family == "bridge":
        what = "frames between VMs of a network"
    elif each.hook == "output":
        directly = "host" in each.sent
        what = f"what the host itself sends to {'networks of kind nat' if directly else 'its ports that lead to VMs'}"
    elif not each.begins_inside:
        what = "what is begun outside of networks of kind nat"
    chain = f"chain {each.chain} of the table {each.family} {each.table}{by}"
    return f"{whose} {chain} {drops} {what}, unless a rule accepts it"


def _remedy(each: Dropping) -> str:
    if each.whose == FIREWALLD:
        return f"firewall-cmd --permanent --zone=trusted --add-interface={BRIDGE_PREFIX}+; firewall-cmd --reload"
    sides = ("in", "out") if each.hook == "forward" else ("out",) if "host" in each.sent else ()
    if each.whose == "ufw" and sides:
        allow = "ufw route allow" if each.hook == "forward" else "ufw allow"
        return "; ".join(f"{allow} {side} on {BRIDGE_PREFIX}+" for side in sides)
    if each.table == "filter" and each.family in PROGRAMS:
        program = PROGRAMS[each.family] + ("-legacy" if each.legacy else "")
        chain = "DOCKER-USER" if each.whose == "docker" else each.chain
        typed = [f"{program} -I {chain} -{side[0]} {BRIDGE_PREFIX}+ -j ACCEPT" for side in sides]
        led = f"{program} -I {chain} -m conntrack --ctstatus DNAT -j ACCEPT"
    else:
        there = f"insert rule {each.family} {each.table} {each.chain}"
        devices = TAP_PREFIX if each.family == "bridge" else BRIDGE_PREFIX
        typed = [f"nft '{there} {side[0]}ifname \"{devices}*\" accept'" for side in sides]
        led = f"nft '{there} ct status dnat accept'"
    typed += [led] if each.hook == "output" and "host-led" in each.sent else []
    return f"after each boot: {'; '.join(typed)}"


def _whose(table: str, chains: set[str], hook: Hook) -> str:
    if table == FIREWALLD:
        return FIREWALLD
    if any(chain.startswith("ufw") for chain in chains):
        return "ufw"
    return "docker" if hook == "forward" and "DOCKER-USER" in chains else ""
