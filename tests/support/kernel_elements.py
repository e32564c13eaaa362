"""A model of what the kernel makes of the text of a ruleset: the elements of its sets."""

from __future__ import annotations

import re

from aetherscale.actors.network.model.chains import SETS

Elements = dict[str, dict[str, str]]


def parts(inner: str) -> dict[str, str]:
    pairs = (element.partition(" : ") for element in inner.split(", "))
    return {key.strip(): value.strip() for key, _, value in pairs}


def elements_of(text: str) -> Elements:
    """The elements of each set that a whole ruleset has; `drops` is filled by packets."""
    found: Elements = {}
    for name in SETS:
        block = re.search(rf"^(?:set|map) {name} {{\n    .*\n(?:    elements = {{ (.*) }}\n)?}}", text, re.MULTILINE)
        assert block is not None, name
        found[name] = parts(block[1]) if block[1] else {}
    return found


def carry_out(text: str, elements: Elements) -> None:
    """Apply a delta, and refuse what the kernel refuses: to take away what is not there, to change what is."""
    for line in text.splitlines():
        match = re.fullmatch(r"(add|delete) element (bridge|inet) aetherscale (\w+) { (.+) }", line)
        assert match is not None, line
        verb, family, name, inner = match.groups()
        assert SETS[name][0] == family
        for key, value in parts(inner).items():
            if verb == "delete":
                assert elements[name].pop(key) == value or SETS[name][1] == "map"
            else:
                assert key not in elements[name], line
                elements[name][key] = value
