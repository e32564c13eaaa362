"""Who else on the host drops what passes it, and what to type so that packets of virtual networks pass too.

An accept of ours is no accept of theirs: a packet passes only where every base chain of its hook lets it. Nothing of
others is changed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from aetherscale.actors.network.model.devices import BRIDGE_PREFIX, TAP_PREFIX
from aetherscale.actors.network.model.marks import TABLES
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

_OPENING: Final = re.compile(r"\s*(?P<kind>table|chain) (?P<name>.+) \{")
_DROPS: Final = re.compile(r"\s*type filter hook forward priority .*; policy drop;")
_OURS: Final = re.compile(rf'iifname "(?:{BRIDGE_PREFIX}|{TAP_PREFIX})\*"')
_PLAIN: Final = re.compile(r"\w+ [\w-]+", re.ASCII)
_JUMP: Final = re.compile(r" -[jg] (\S+)")
_LEGACY_DROPS: Final = re.compile(r"^-P FORWARD (?:DROP|REJECT)$", re.MULTILINE)


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


def dropping(chains: str) -> list[Dropping]:
    """Those of others in what `nft list chains` prints."""
    found, family, table, chain = [], "", "", ""
    known: dict[tuple[str, str], set[str]] = {}
    for line in chains.splitlines():
        opening = _OPENING.fullmatch(line)
        if opening is not None and opening["kind"] == "table":
            family, _, table = opening["name"].partition(" ")
        elif opening is not None:
            chain = opening["name"]
            known.setdefault((family, table), set()).add(chain)
            if table == FIREWALLD and chain == "filter_FORWARD":  # it accepts by policy, and rejects by its last rule
                found.append((family, table, chain))
        elif _DROPS.fullmatch(line) and family in FAMILIES and table not in TABLES:
            found.append((family, table, chain))
    return [Dropping(*each, whose=_whose(each[1], known[each[:2]])) for each in found]


def unanswered(found: Sequence[Dropping], tables: Mapping[str, str]) -> list[Dropping]:
    """Those of them whose tables have no rule for devices of ours yet; `tables` is `listings`, each as nft lists it."""
    return [each for each in found if not _OURS.search(tables.get(_name(each), ""))]


def listings(found: Sequence[Dropping]) -> list[str]:
    """Family and name of the tables that are worth a look. What nft would take for something else is none."""
    return sorted({name for each in found if _PLAIN.fullmatch(name := _name(each))})


def legacy_dropping(said: Mapping[str, str | None]) -> list[Dropping]:
    """Those in what each of `LEGACY` answers to `-S`, and that have no rule for devices of ours yet.

    None is where it does not answer, and so may drop too.
    """
    return [
        Dropping(
            LEGACY[program][1],
            "filter",
            "FORWARD",
            _whose("", set(_JUMP.findall(text or ""))),
            legacy=True,
            certain=text is not None,
        )
        for program, text in said.items()
        if text is None or (_LEGACY_DROPS.search(text) and f" -i {BRIDGE_PREFIX}+ " not in text)
    ]


_FRAMES_DROPPED: Final = (
    "what VMs of one network send each other passes the host's chains for forwarded packets too, which may drop it"
)
_FRAMES_LED: Final = (
    "a VM does not reach itself by a port of the host that leads to it, and its neighbors reach it there as if "
    "they had asked it directly"
)


def findings(found: Sequence[Dropping], calls: tuple[str, ...], *, is_known: bool) -> Iterator[Finding]:
    """For each chain of others what to type; `calls` are the `bridge-nf-call-*` that are on.

    Without `is_known` nobody could look who else filters.
    """
    for each in found:
        yield Finding(CHECK, "warning", _sentence(each), _remedy(each))
    if calls:
        routed = [each for each in found if each.family != "bridge"]
        what = _FRAMES_DROPPED if routed or not is_known else _FRAMES_LED
        remedy = (
            f"if nothing else on this host needs it: sysctl -w {' '.join(f'net.bridge.{each}=0' for each in calls)}"
        )
        yield Finding("bridge netfilter", "warning", f"{', '.join(calls)}: {what}", remedy)
    if is_known and not found:
        yield Finding(CHECK, "ok", "nobody else drops what networks forward")


def _name(each: Dropping) -> str:
    return f"{each.family} {each.table}"


def _sentence(each: Dropping) -> str:
    whose = {"docker": "Docker's", "ufw": "ufw's", FIREWALLD: "firewalld's"}.get(each.whose, "the")
    by = " of iptables-legacy" if each.legacy else ""
    drops = "drops" if each.certain else "may drop"
    what = "frames between VMs of a network" if each.family == "bridge" else "what networks of kind nat send and get"
    chain = f"chain {each.chain} of the table {each.family} {each.table}{by}"
    return f"{whose} {chain} {drops} {what}, unless a rule accepts it"


def _remedy(each: Dropping) -> str:
    bridges = f"{BRIDGE_PREFIX}+"
    if each.whose == "ufw":
        return f"ufw route allow in on {bridges}"
    if each.whose == FIREWALLD:
        return f"firewall-cmd --permanent --zone=trusted --add-interface={bridges}; firewall-cmd --reload"
    there = f"insert rule {each.family} {each.table} {each.chain}"
    if each.family == "bridge":
        typed = f"nft '{there} iifname \"{TAP_PREFIX}*\" accept'; nft '{there} oifname \"{TAP_PREFIX}*\" accept'"
    elif each.table == "filter" and each.family in PROGRAMS:
        program = PROGRAMS[each.family] + ("-legacy" if each.legacy else "")
        chain = "DOCKER-USER" if each.whose == "docker" else each.chain
        typed = (
            f"{program} -I {chain} -i {bridges} -j ACCEPT; "
            f"{program} -I {chain} -o {bridges} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
        )
    else:
        answers = f'oifname "{BRIDGE_PREFIX}*" ct state established,related accept'
        typed = f"nft '{there} iifname \"{BRIDGE_PREFIX}*\" accept'; nft '{there} {answers}'"
    return f"after each boot: {typed}"


def _whose(table: str, chains: set[str]) -> str:
    if table == FIREWALLD:
        return FIREWALLD
    if any(chain.startswith("ufw") for chain in chains):
        return "ufw"
    return "docker" if "DOCKER-USER" in chains else ""
