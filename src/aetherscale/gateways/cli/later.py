"""The words of components that this version does not have: known, so that they are refused as such and not mistaken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aetherscale.components import LATER
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import later_version
from aetherscale.gateways.cli.grammar import Command

_INSTEAD: Final = "a VM reaches others in a network (`network create`), and is reached from outside by --publish"


def _refuse(context: Context) -> None:
    assert isinstance(context.parsed.node, Command)
    raise later_version(context.parsed.name, context.parsed.node.refused)


def _later(name: str, instead: str) -> Command:
    return Command(name, "not in this version", _refuse, refused=instead)


COMMANDS: Final[Mapping[str, Command]] = {name: _later(name, _INSTEAD) for name in LATER}
