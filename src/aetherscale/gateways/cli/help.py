"""The help of a command, drawn from the grammar. Plain text, as wide as a small terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from aetherscale.gateways.cli.grammar import GLOBAL_OPTIONS, Argument, Command, Entry, Group, Option

WIDTH = 79
"""Fits a terminal of 80 columns."""
COLUMN = 26
_GOES_ON = " \\"
"""At the end of a line of a shell that goes on in the next one."""
TOGETHER = "\u00a0"
"""Stands for a space at which no line is broken."""


def help_of_program(entries: Sequence[Entry], program: str, about: str) -> str:
    """All commands at the top, with what each is for."""
    return "\n".join(
        (
            f"usage: {program} COMMAND …",
            "",
            *_wrap(about),
            "",
            "commands:",
            *_table((entry.name, entry.summary) for entry in entries),
            "",
            "everywhere:",
            *_options(GLOBAL_OPTIONS),
            "",
            "exit status: 0 done, 1 failed, 2 bad usage or refused input, 3 no such object,",
            "             4 no node answered, 5 the wait ended while the work continues",
            "",
        )
    )


def help_of_group(group: Group, name: str) -> str:
    """The members of a group, which is typed as `name`."""
    lines = [f"usage: {name} COMMAND …", "", group.summary, "", "commands:"]
    lines += _table((member.name, member.summary) for member in group.members)
    examples = [e for member in group.members if isinstance(member, Command) for e in member.examples[:1]]
    if examples:
        lines += ["", "examples:", *_examples(examples)]
    return "\n".join((*lines, "", f"{name} COMMAND --help says more.", ""))


def help_of_command(command: Command, name: str) -> str:
    """The help of a command: what it does, its words, and examples."""
    lines = [f"usage: {name}{usage(command)}", "", *_wrap(command.summary)]
    if command.refused:
        lines += ["", *_wrap(f"This version does not have it: {command.refused}.")]
    for paragraph in command.details.split("\n\n") if command.details else ():
        lines += ["", *_wrap(paragraph)]
    if command.arguments:
        lines += ["", "arguments:", *_table((each.name, meaning(each)) for each in command.arguments)]
    if command.options:
        lines += ["", "options:", *_options(command.options)]
    lines += ["", "everywhere:", *_options(GLOBAL_OPTIONS)]
    if command.examples:
        lines += ["", "examples:", *_examples(command.examples)]
    return "\n".join((*lines, ""))


def usage(command: Command) -> str:
    """The words of a command in one line, after its name."""
    options = "[options]" if command.options else ""
    words = []
    if any(argument.rest for argument in command.arguments):
        # What follows those that take every word is theirs.
        words, options = [options], ""
    for argument in command.arguments:
        shown = f"{argument.name} …" if argument.rest or argument.many else argument.name
        words.append(shown if argument.required else f"[{shown}]")
    words += [f"--{option.name} {option.metavar}" for option in command.options if option.needed]
    return "".join(f" {word}" for word in (*words, options) if word)


def _options(options: Iterable[Option]) -> list[str]:
    return _table((flag(option), meaning(option)) for option in options)


def flag(option: Option) -> str:
    """An option as it is typed, with what stands for its value."""
    typed = f"-{option.short}, --{option.name}" if option.short else f"--{option.name}"
    return f"{typed} {option.metavar}{'…' if option.many else ''}" if option.metavar else typed


def meaning(item: Option | Argument) -> str:
    """The help text of an option or argument, with its choices and its default. `TOGETHER` stands for some of the
    spaces.
    """
    one_of = f" ({f'{TOGETHER}|{TOGETHER}'.join(item.choices)})" if item.choices else ""
    if len(one_of) > WIDTH - COLUMN:
        one_of = one_of.replace(f"{TOGETHER}|", " |")
    default = f" [default:{TOGETHER}{item.default}]" if isinstance(item, Option) and item.default is not None else ""
    return f"{item.help}{one_of}{default}"


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, WIDTH - COLUMN, break_on_hyphens=False) or [""]
        first, *others = (line.replace(TOGETHER, " ") for line in wrapped)
        if len(left) + 4 > COLUMN:
            lines += [f"  {left}", " " * COLUMN + first]
        else:
            lines.append(f"  {left:<{COLUMN - 2}}{first}")
        lines += [" " * COLUMN + other for other in others]
    return lines


def _examples(examples: Iterable[str]) -> list[str]:
    return [line for example in examples for line in _example(example)]


def _example(example: str) -> list[str]:
    """A line to be copied; one that is too long goes on before an option, as a shell takes it."""
    first, *others = example.split(" --")
    lines = [f"  {first}"]
    for other in others:
        if len(lines[-1]) + len(f" --{other}") + len(_GOES_ON) > WIDTH:
            lines[-1] += _GOES_ON
            lines.append(f"      --{other}")
        else:
            lines[-1] += f" --{other}"
    return lines


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)
