"""The context of a command: the parsed line, the output, the settings, and the way to a node."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aetherscale.gateways.cli.output import Output
from aetherscale.gateways.cli.parse import Parsed
from aetherscale.gateways.cli.program import Program

if TYPE_CHECKING:
    from aetherscale.gateways.cli.client import Client
    from aetherscale.settings import Settings


class Context:
    """One run of one command."""

    def __init__(self, parsed: Parsed, program: Program) -> None:
        self.parsed = parsed
        self.program = program
        self.out = Output(json=bool(parsed.values["json"]))

    @property
    def values(self) -> Mapping[str, Any]:
        """The typed values, by the name of the option or argument."""
        return self.parsed.values

    def suggest(self, text: str) -> None:
        """A note with commands to type, which mean the objects that this one meant."""
        from aetherscale.gateways.cli.wording import again

        self.out.note(again(text, self.parsed))

    @cached_property
    def settings(self) -> Settings:
        """Flags over environment over file over defaults. Raises `Refused`."""
        from aetherscale.settings import load_settings

        return load_settings(self.values, self.program.environ)

    @cached_property
    def client(self) -> Client:
        """The way to a node; connects with the first request."""
        from aetherscale.gateways.cli.client import Client

        return Client(self.settings, self.program)
