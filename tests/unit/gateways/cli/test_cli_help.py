"""The help of the command line: it names every command and option, and its examples are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from aetherscale.components import LATER, identities
from aetherscale.gateways.cli import tree
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.grammar import Group
from aetherscale.gateways.cli.help import help_of_command, help_of_group, help_of_program
from aetherscale.gateways.cli.parse import parse
from tests.support.command_lines import commands, parsed, values

ROOT = Path(__file__).parents[4]


class TestHelp:
    def test_every_example_is_understood(self) -> None:
        seen = 0
        for path, command in commands():
            assert command.examples or command.refused, f"aetherscale {path} has no example"
            for example in command.examples:
                # What a shell would take for itself.
                words = re.split(r" [>&|]", example.rpartition("| ")[2])[0]
                program, _, line = words.partition(" ")
                assert program in ("aetherscale", "nats"), example
                if program == "aetherscale":
                    assert parsed(line).path == tuple(path.split()), example
                    seen += 1
        assert seen > 40

    def test_every_command_line_of_the_pages_is_understood(self) -> None:
        seen = 0
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
            for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
                for line in block.splitlines():
                    if line.startswith("aetherscale "):
                        words = re.split(r" [>&|]", line.partition("#")[0])[0]
                        parse(shlex.split(words)[1:], tree.ENTRIES, "serve")
                        seen += 1
        assert seen > 10

    def test_options_stand_where_they_are_understood_and_what_belongs_together_is_on_one_line(self) -> None:
        for path, command in commands():
            text = help_of_command(command, f"aetherscale {path}")
            assert not re.search(r"(\[default:|\|)$", text, re.MULTILINE), path
            assert "\u00a0" not in text
            if command.options and any(argument.rest for argument in command.arguments):
                assert text.startswith(f"usage: aetherscale {path} [options] ")
        assert values("vm exec --timeout 5s web ls --timeout")["COMMAND"] == ["ls", "--timeout"]

    def test_the_help_names_every_argument_option_and_example(self) -> None:
        for path, command in commands():
            text = help_of_command(command, f"aetherscale {path}")
            for option in command.options:
                assert f"--{option.name}" in text
            for argument in command.arguments:
                assert argument.name in text
            for example in command.examples:
                assert example in text.replace(" \\\n     ", ""), "a shell joins what a backslash breaks"
            assert max(map(len, text.splitlines())) <= 120

    def test_the_help_of_a_group_names_its_commands(self) -> None:
        program = help_of_program(tree.ENTRIES, "aetherscale", "about")
        for entry in tree.ENTRIES:
            assert f"\n  {entry.name} " in program
            node = entry.load()
            if isinstance(node, Group):
                text = help_of_group(node, f"aetherscale {node.name}")
                assert all(f"\n  {member.name} " in text for member in node.members)

    def test_every_kind_of_object_and_none_of_a_later_version_is_named_where_a_kind_is_asked_for(self) -> None:
        kinds = [each.kind for each in identities()]
        for path, name in (("why", " web"), ("replay", "")):
            command = dict(commands())[path]
            text = help_of_command(command, f"aetherscale {path}")
            assert f"({' | '.join(kinds)})" in text
            assert not [kind for kind in LATER if kind in text]
            with pytest.raises(Failure) as failed:
                parse([path, "zzz", "web"], tree.ENTRIES, "serve")
            assert failed.value.message == f"aetherscale {path}: KIND: got 'zzz', expected one of {', '.join(kinds)}"
            for kind in LATER:
                assert values(f"{path} {kind}{name}")["KIND"] == kind, "it is refused as such, not as a mistake"
        (summary,) = (entry.summary for entry in tree.ENTRIES if entry.name == "why")
        assert summary == dict(commands())["why"].summary
        assert all(each.noun in summary for each in identities())

    def test_the_words_at_the_top_are_the_names_of_what_they_load(self) -> None:
        assert [entry.load().name for entry in tree.ENTRIES] == [entry.name for entry in tree.ENTRIES]
