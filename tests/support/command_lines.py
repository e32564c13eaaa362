"""Command lines as they are understood, and every command that there is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from aetherscale.gateways.cli import tree
from aetherscale.gateways.cli.grammar import Command, Group
from aetherscale.gateways.cli.parse import Parsed, parse


def parsed(line: str) -> Parsed:
    return parse(shlex.split(line), tree.ENTRIES, "serve")


def values(line: str) -> dict[str, Any]:
    """What was given, without what was left out."""
    return {name: value for name, value in parsed(line).values.items() if value not in (None, False, [])}


def commands() -> Iterator[tuple[str, Command]]:
    """Every command with the words that lead to it."""

    def below(path: str, node: Command | Group) -> Iterator[tuple[str, Command]]:
        if isinstance(node, Command):
            yield path, node
        else:
            for member in node.members:
                yield from below(f"{path} {member.name}", member)

    for entry in tree.ENTRIES:
        yield from below(entry.name, entry.load())
