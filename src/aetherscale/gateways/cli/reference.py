"""The parts of docs/cli.md that the grammar says: the list of all commands, and each with its words and examples.

Markdown, made by `just docs`. What the page explains beside them is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from aetherscale.gateways.cli.grammar import GLOBAL_OPTIONS, Argument, Command, Entry, Group, Option
from aetherscale.gateways.cli.help import TOGETHER, flag, meaning, usage

PROGRAM = "aetherscale"


def sections(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """The lines of each section of the page that is made from the grammar, by its heading."""
    return {"Commands": list(_commands(entries)), "Reference": list(_reference(entries))}


def commands(entries: Iterable[Entry]) -> Iterator[tuple[str, str, Command]]:
    """Every command: its words after the program's name, what it is for, and the command itself."""
    for entry in entries:
        node = entry.load()
        if isinstance(node, Command):
            yield entry.name, entry.summary, node
        else:
            yield from _below(node, entry.name)


def _below(group: Group, name: str) -> Iterator[tuple[str, str, Command]]:
    for member in group.members:
        if isinstance(member, Command):
            yield f"{name} {member.name}", member.summary, member
            for part in member.parts.values():
                yield f"{name} {member.name} {part.name}", part.summary, part
        else:
            yield from _below(member, f"{name} {member.name}")


def _commands(entries: Sequence[Entry]) -> Iterator[str]:
    yield from ("| command | what it does |", "| --- | --- |")
    for name, summary, command in commands(entries):
        shown = f"`{name}`" if command.refused else f"[`{name}`](#{name.replace(' ', '-')})"
        yield f"| {shown} | {_cell(summary)} |"


def _reference(entries: Sequence[Entry]) -> Iterator[str]:
    yield "The text of each command's `--help`. These options may stand before or after every command:"
    yield from _table("option", ((flag(option), meaning(option)) for option in GLOBAL_OPTIONS))
    for name, summary, command in commands(entries):
        if not command.refused:
            yield from _command(name, summary, command)


def _command(name: str, summary: str, command: Command) -> Iterator[str]:
    yield from ("", f"### {name}", "", "```", f"{PROGRAM} {name}{usage(command)}", "```", "", _sentence(summary))
    for paragraph in command.details.split("\n\n") if command.details else ():
        yield from ("", _text(paragraph))
    yield from _table("argument", ((_word(each), meaning(each)) for each in command.arguments))
    yield from _table("option", ((flag(each), _needed(each)) for each in command.options))
    if command.examples:
        yield from ("", "```sh", *command.examples, "```")


def _word(argument: Argument) -> str:
    return f"{argument.name} …" if argument.rest or argument.many else argument.name


def _needed(option: Option) -> str:
    return f"{meaning(option)}; required" if option.needed else meaning(option)


def _table(head: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    shown = [f"| `{word}` | {_cell(what)} |" for word, what in rows]
    if shown:
        yield from ("", f"| {head} | meaning |", "| --- | --- |", *shown)


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    return text.replace(TOGETHER, " ").replace("<", "&lt;")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{_text(text[1:])}."
