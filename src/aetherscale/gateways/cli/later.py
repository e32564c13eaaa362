"""The words of components that this version does not have: known, so that they are refused as such and not mistaken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import later_version
from aetherscale.gateways.cli.grammar import Command

_USER_NETWORKING: Final = "a VM has user-mode networking, so it reaches out and nothing reaches it"


def _refuse(context: Context) -> None:
    assert isinstance(context.parsed.node, Command)
    raise later_version(context.parsed.name, context.parsed.node.refused)


def _later(name: str, instead: str) -> Command:
    return Command(name, "not in this version", _refuse, refused=instead)


LATER: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        _later("network", _USER_NETWORKING),
        _later("vpn", _USER_NETWORKING),
        _later("firewall", _USER_NETWORKING),
    )
}
