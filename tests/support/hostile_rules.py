"""Rule sets as strangers send them: good ones, nearly good ones, and texts that would mean something to nft."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

MARKS: Final = ("zzyx", "qqvw")
"""In every hostile word: none of it may be found in what nft is given."""
_TAILS: Final = (
    "; flush ruleset", " accept # ", '" comment "x', "\n", "\0", "}", "{", "$", "@", "\\", "'", "`", "\t", "‮", "é", "",
    "\nadd rule bridge aetherscale forward accept", " counter", "/*", "٣", "%eth0", "::", ":", ",", "-", "/",
)  # fmt: skip
_PORTS: Final = (
    "0", "65536", "80-79", "80-80", "1-65535", "65535", "-1", "+80", "080", "0x50", "８０", "80-", "-80", "80--81",
    "8e1", "80.0", " 80", "80 ", "99999999999999999999", "http", "", "1-65536", "0-1", "80-81-82", "{ 80 }", "any", "*",
    "٣",
)  # fmt: skip
_PREFIXES: Final = (
    "0.0.0.0/0", "::/0", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/24", "10.0.0.0.0", "256.1.1.1",
    "fd00::/129", "fd00::1/64", "fe80::1%eth0", "fe80::/10", "::ffff:10.0.0.1", "127.0.0.1", "::1", "224.0.0.0/4", "::",
    "ff02::1", "0.0.0.0",  # noqa: S104
    "10.0.0.0/255.0.0.0", "1:2:3:4:5:6:7:8:9", "010.0.0.1", "10.0.0.0/08", "fd00::/", "/8", "localhost", "10", "",
    "fd00::g", "1::2::3", "240.0.0.1", "255.255.255.255", "::ffff:0:0/96", "0.0.0.0/1", "8000::/1", "fd00::/64 ",
)  # fmt: skip
_TYPES: Final = (
    "echo-request", "echo-reply", "destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem",
    "redirect", "router-advertisement", "0", "8", "ECHO-REQUEST", "echo-request ", "any", "", "nd-neighbor-solicit",
)  # fmt: skip
GOOD_TYPES: Final = _TYPES[:6]


class Hostile:
    """Makes rule sets by chance; `names` are groups that are there."""

    def __init__(self, chance: random.Random, names: Sequence[str]) -> None:
        self._chance, self._names = chance, names

    def rule_set(self) -> list[Any]:
        """Mostly good rules, so that sets are accepted at all; sometimes one that is not, sometimes too many."""
        chance = self._chance
        kind = chance.random()
        count = chance.choice((256, 257, 1000, 3000)) if kind < 0.004 else chance.choice((0, 1, 1, 2, 3, 5, 8))
        rules: list[Any] = [self._good() for _ in range(count)]
        if kind > 0.5:
            for _ in range(chance.choice((1, 1, 2))):
                rules.insert(chance.randint(0, len(rules)), self._bad())
        return rules

    def word(self) -> str:
        """A word that has to be refused, or at least not to be heard of again."""
        word = f"{self._chance.choice(MARKS)}{self._chance.choice(_TAILS)}"
        return word if self._chance.random() < 0.8 else word * self._chance.choice((2, 20, 400))

    def port(self) -> Any:
        """A port that is none, more often than not."""
        return self._chance.choice((0, 65536, -1, 1.5, None, True, 1 << 70, [], {}, "80", 80, self.word()))

    # --- good ones ---

    def _good(self) -> Any:
        chance = self._chance
        protocol = chance.choice(("tcp", "tcp", "udp", "icmp", "any"))
        direction = chance.choice(("in", "in", "out"))
        whom = self._whom()
        if protocol in ("tcp", "udp"):
            what: list[Any] = [self._range() for _ in range(chance.choice((0, 1, 1, 2, 2, chance.choice((3, 5, 64)))))]
        elif protocol == "icmp" and "." not in whom.get("cidr", ""):
            what = chance.sample(GOOD_TYPES, chance.randint(0, 3))
        else:
            what = []
        if chance.random() < 0.5:
            peer = whom.get("cidr") or (f"group/{whom['group']}" if whom else "")
            mark = {"in": "from=", "out": "to="}[direction]
            parts = [direction, protocol, ",".join(map(str, what[:20])), f"{mark}{peer}" if peer else ""]
            return ":".join(filter(None, parts))
        options: dict[str, Any] = {"direction": direction, "protocol": protocol, **whom}
        if what:
            options["types" if protocol == "icmp" else "ports"] = what
        return options

    def _range(self) -> Any:
        low = self._chance.choice((1, 22, 80, 443, 65535, self._chance.randint(1, 65535)))
        high = min(65535, low + self._chance.choice((0, 0, 1, 10, 65535)))
        return low if low == high else f"{low}-{high}"

    def _whom(self) -> dict[str, str]:
        chance = self._chance
        kind = chance.random()
        if kind < 0.4 or (kind < 0.6 and not self._names):
            return {}
        if kind < 0.6:
            return {"group": chance.choice(self._names)}
        if kind < 0.8:
            length = chance.randint(1, 32)
            bits = (10 << 24 | chance.getrandbits(24)) >> (32 - length) << (32 - length)
            return {"cidr": f"{'.'.join(str(bits >> at & 255) for at in (24, 16, 8, 0))}/{length}"}
        length = chance.randint(1, 128)
        bits = (0xFD << 120 | chance.getrandbits(120)) >> (128 - length) << (128 - length)
        return {"cidr": f"{':'.join(f'{bits >> at & 0xFFFF:x}' for at in range(112, -1, -16))}/{length}"}

    # --- bad ones ---

    def _bad(self) -> Any:
        objects = (self._bad_object, self._bad_object)
        ways: tuple[Callable[[], Any], ...] = (
            self._nearly,
            self._nearly,
            self._bad_text,
            self._bad_text,
            *objects,
            self._no,
        )
        return self._chance.choice(ways)()

    def _nearly(self) -> str:
        """A rule of which one part alone may be none."""
        chance = self._chance
        rules = (
            f"in:tcp:{chance.choice(_PORTS)}",
            f"in:any:from={chance.choice(_PREFIXES)}",
            f"in:icmp:{chance.choice(_TYPES)}",
        )
        return chance.choice(rules)

    def _bad_text(self) -> str:
        chance = self._chance
        parts = [chance.choice(("in", "out")), chance.choice(("tcp", "udp", "icmp", "any"))]
        parts.append(chance.choice((*_PORTS, *_TYPES, ",".join("1" * 600), self.word())))
        peer = chance.choice((*_PREFIXES, f"group/{self.word()}", "group/", self.word()))
        parts.append(chance.choice(("from=", "to=", "from", "", "from=to=")) + peer)
        if chance.random() < 0.5:
            parts[chance.randrange(4)] = self.word()
        text = ":".join(parts[: chance.choice((1, 2, 3, 4, 4, 4))])
        at = chance.randint(0, len(text))
        return text if chance.random() < 0.7 else text[:at] + chance.choice(_TAILS) + text[at:]

    def _bad_object(self) -> dict[str, Any]:
        chance = self._chance
        options: dict[str, Any] = {
            "direction": chance.choice(("in", "out")),
            "protocol": chance.choice(("tcp", "icmp")),
        }
        field = chance.choice(("ports", "types", "cidr", "group", "direction", "protocol", "comment", self.word()))
        many = list(range(1, 20_001, 2))
        values = {
            "ports": (many, [chance.choice(_PORTS)], [self.port()], ",".join(_PORTS), self.word()),
            "types": ([chance.choice(_TYPES)], list(_TYPES), [8], self.word()),
            "cidr": (chance.choice(_PREFIXES), chance.choice(_PREFIXES), 8, self.word()),
            "group": (self.word(), "", 7, "a" * 16),
        }
        options[field] = chance.choice(values.get(field, (self.word(), 7, None)))
        if chance.random() < 0.2:
            options |= {"cidr": "10.0.0.0/8", "group": chance.choice(("g", *self._names))}
        return options

    def _no(self) -> Any:
        return self._chance.choice((7, None, [], {}, True, 1.5, "", " ", self.word(), [["in:any"]]))
