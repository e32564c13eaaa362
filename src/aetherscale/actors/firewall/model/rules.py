"""Rules as callers write them, in short or field by field, and the one form that each has here. Pure.

`in:tcp:80,443`, `in:tcp:22:from=10.0.0.0/8`, `in:any:from=group/web`, `in:icmp:echo-request`, `out:udp:53:to=fd00::/8`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NoReturn, get_args

from aetherscale.actors.firewall.model.commands import (
    ICMP_TYPES,
    MOST_RANGES,
    Direction,
    Protocol,
    Rule,
    RuleOptions,
)
from aetherscale.actors.firewall.model.prefixes import NotAPrefix, Prefix, parse
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import is_id, is_name
from aetherscale.kernel.rules import shown

_DIRECTIONS: Final = get_args(Direction)
_PROTOCOLS: Final = get_args(Protocol)
_WITH_PORTS: Final = ("tcp", "udp")
_PEERS: Final = {"in": "from=", "out": "to="}
_GROUP: Final = "group/"
_RANGE: Final = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")
_LAST_PORT: Final = 65535


def parse_rules(given: Sequence[str | RuleOptions]) -> tuple[Rule, ...]:
    """Each rule in its canonical form; a group that it names is in `group`, as it was written.

    Raises `Refused` (bad request), which names the rule and its field: `rules[3].ports`.
    """
    return tuple(_Written(number, each).rule() for number, each in enumerate(given))


def short(rule: Rule) -> str:
    """A rule as `parse_rules` takes it."""
    what = ",".join((*rule.ports, *rule.types))
    whom = f"{_GROUP}{rule.group}" if rule.group is not None else rule.cidr
    peer = f"{_PEERS[rule.direction]}{whom}" if whom is not None else ""
    return ":".join(filter(None, (rule.direction, rule.protocol, what, peer)))


class _Written:
    """One rule as it was written, and where."""

    def __init__(self, number: int, given: str | RuleOptions) -> None:
        self._place = f"rules[{number}]"
        self._called = shown(given) if isinstance(given, str) else self._place
        self._given = self._taken_apart(given) if isinstance(given, str) else given

    def rule(self) -> Rule:
        """Its canonical form. Raises `Refused`."""
        given = self._given
        if given.cidr is not None and given.group is not None:
            self._refuse("group", f"{self._called} names a prefix and a group, expected one of them")
        prefix = self._prefix(given.cidr) if given.cidr is not None else None
        return Rule(
            given.direction,
            given.protocol,
            ports=tuple(self._ports(_listed(given.ports))),
            types=tuple(self._types(_listed(given.types), prefix)),
            cidr=str(prefix) if prefix is not None else None,
            group=given.group,
        )

    def _taken_apart(self, text: str) -> RuleOptions:
        direction, _, rest = text.partition(":")
        if direction not in _DIRECTIONS:
            self._wrong("direction", direction, "in or out, as in:tcp:80")
        protocol, *more = rest.split(":", 1)
        if protocol not in _PROTOCOLS:
            self._wrong("protocol", protocol, f"one of {', '.join(_PROTOCOLS)}, as in:tcp:80")
        what, whom = self._what_and_whom(direction, more[0]) if more else (None, None)
        is_group = whom is not None and whom.startswith(_GROUP)
        group = whom.removeprefix(_GROUP) if whom is not None and is_group else None
        if group is not None and not (is_name(group) or is_id(group)):
            self._wrong("group", group, "the name or the id of a group")
        listed: list[int | str] = [] if what is None else [*what.split(",")]
        has_types = protocol == "icmp"
        return RuleOptions(
            direction=direction,  # type: ignore[arg-type]
            protocol=protocol,  # type: ignore[arg-type]
            ports=[] if has_types else listed,
            types=[str(each) for each in listed] if has_types else [],
            cidr=None if is_group else whom,
            group=group,
        )

    def _what_and_whom(self, direction: str, text: str) -> tuple[str | None, str | None]:
        """Ports or types, and whom it is about: `80:from=fd00::/8`, of which either may be all."""
        mark, marks = _PEERS[direction], tuple(_PEERS.values())
        if text.startswith(marks):
            what, peer = None, text
        else:
            what, colon, peer = text.partition(":")
            if not colon:
                return what, None
        if not peer.startswith(mark):
            field = "direction" if peer.startswith(marks) else "rules"
            self._wrong(field, peer, f"{mark}PREFIX or {mark}group/NAME, as the direction is {direction}")
        return what, peer.removeprefix(mark)

    def _ports(self, given: Sequence[int | str]) -> Iterator[str]:
        if given and self._given.protocol not in _WITH_PORTS:
            self._refuse("ports", f"{self._called} has ports, which {self._given.protocol} has none of: tcp and udp do")
        if len(given) > MOST_RANGES:
            self._wrong("ports", f"{len(given)} ports and ranges", f"at most {MOST_RANGES}")
        return (str(first) if first == last else f"{first}-{last}" for first, last in _merged(map(self._range, given)))

    def _range(self, given: int | str) -> tuple[int, int]:
        found = _RANGE.fullmatch(str(given))
        first = int(found[1]) if found is not None else 0
        last = int(found[2] or first) if found is not None else 0
        if not 1 <= first <= _LAST_PORT or not 1 <= last <= _LAST_PORT:
            self._wrong("ports", given, f"a port from 1 to {_LAST_PORT}, or a range as 8000-8100")
        if last < first:
            self._wrong("ports", given, f"a range that ascends, as {last}-{first}")
        return first, last

    def _types(self, given: Sequence[int | str], prefix: Prefix | None) -> Sequence[str]:
        if given and self._given.protocol != "icmp":
            self._refuse("types", f"{self._called} has types, which {self._given.protocol} has none of: icmp does")
        for each in given:
            if each not in ICMP_TYPES:
                self._wrong("types", each, f"one of {', '.join(ICMP_TYPES)}")
            if prefix is not None and prefix.version == 4 and ICMP_TYPES[str(each)][0] is None:
                self._wrong("types", each, "a type that IPv4 has, as the prefix is one of IPv4")
        return sorted({str(each) for each in given})

    def _prefix(self, text: str) -> Prefix:
        try:
            return parse(text)
        except NotAPrefix as wrong:
            self._wrong("cidr", text, str(wrong))

    def _wrong(self, field: str, got: Any, expected: str) -> NoReturn:
        self._refuse(field, f"{self._called}: got {shown(got)}, expected {expected}")

    def _refuse(self, field: str, message: str) -> NoReturn:
        place = self._place if field == "rules" else f"{self._place}.{field}"
        raise Refused(Reason.BAD_REQUEST, message, field=place)


def _listed(given: Sequence[int | str] | str) -> Sequence[int | str]:
    return given.split(",") if isinstance(given, str) else given


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same ports in as few ranges as can be, in order."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return iter(merged)
