"""`completion`: scripts for the shells, and the words that they offer.

The scripts know nothing: they ask `aetherscale completion words` for what can come next, so that names of VMs and
images are offered too, and a new command needs no new script.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress

from msgspec.structs import replace

from aetherscale.components import identities
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.grammar import GLOBAL_OPTIONS, Argument, Command, Group, Option
from aetherscale.kernel.errors import Refused

ANSWER_S = 1.0
"""How long a shell may have to wait for names."""

BASH = """\
_aetherscale() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _aetherscale aetherscale
"""

ZSH = """\
#compdef aetherscale
_aetherscale() {
    local -a found
    found=("${(@f)$(${words[1]} completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -- "${found[@]}"; else _files; fi
}
compdef _aetherscale aetherscale
"""

FISH = """\
function __aetherscale_words
    set -l typed (commandline -opc) (commandline -ct)
    set -l found ($typed[1] completion words -- $typed[2..-1] 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c aetherscale -f -a '(__aetherscale_words)'
"""


def _script(shell: str, text: str, place: str) -> Command:
    def run(context: Context) -> None:
        if context.out.json:
            context.out.value({"shell": shell, "script": text})
        else:
            context.out.line(text.rstrip("\n"))

    return Command(
        shell,
        f"print the script for {shell}",
        run,
        examples=(f"aetherscale completion {shell} > aetherscale.{shell}",),
        details=f"Keep it in {place}.",
    )


def _words(context: Context) -> None:
    words = offered(context, context.values["WORD"])
    if context.out.json:
        context.out.value(words)
        return
    for word in words:
        context.out.line(word)


def offered(context: Context, words: Sequence[str]) -> list[str]:
    """The words that can stand in the place of the last one that was typed, which may be half typed.

    Options of the line that say which node is meant are heeded.
    """
    from aetherscale.gateways.cli.tree import ENTRIES

    *typed, last = _joined(words) or [""]
    node: Command | Group | None = None
    arguments: list[str] = []
    value_of: Option | None = None
    given: dict[str, str] = {}
    for word in typed:
        if value_of is not None:
            given[value_of.name] = _as_the_shell_has_it(word)
            value_of = None
        elif word.startswith("-"):
            name, equals, value = word.partition("=")
            option = _option(node, name)
            if option is not None and option.metavar and equals:
                given[option.name] = _as_the_shell_has_it(value)
            elif option is not None and option.metavar:
                value_of = option
        elif isinstance(node, Command):
            arguments.append(word)
        elif node is None:
            node = next((entry.load() for entry in ENTRIES if entry.name == word), None)
            if node is None:
                return []
        else:
            node = next((member for member in node.members if member.name == word), None)
            if node is None:
                return []
    asked = {option.name: given[option.name] for option in GLOBAL_OPTIONS if option.name in given}
    there = Context(replace(context.parsed, values={**context.values, **asked}), context.program)
    flag, equals, half = last.partition("=")
    if value_of is None and equals and (option := _option(node, flag)) is not None:
        return [f"{flag}={value}" for value in _values(there, option) if value.startswith(half)]
    return [word for word in _candidates(there, node, arguments, value_of, last) if word.startswith(last)]


def _joined(words: Sequence[str]) -> list[str]:
    """The words as they were typed: bash takes `--node=a` and `nats://h:1` apart, at `=` and at `:`."""
    joined: list[str] = []
    is_open = False
    for at, word in enumerate(words):
        if word == "=" and joined and joined[-1].startswith("--"):
            if at == len(words) - 1:
                joined.append("")
            continue
        if joined and (word == ":" or is_open):
            joined[-1] += word
        else:
            joined.append(word)
        is_open = word == ":"
    return joined


def _as_the_shell_has_it(word: str) -> str:
    """A word of a line that the shell has not looked at yet: without its quotes, with what stands for other text."""
    with suppress(ValueError):
        (word,) = shlex.split(word) or [""]
    return os.path.expanduser(os.path.expandvars(word))


def _option(node: Command | Group | None, flag: str) -> Option | None:
    return next((each for each in _options(node) if flag in (f"--{each.name}", f"-{each.short}")), None)


def _candidates(
    context: Context, node: Command | Group | None, typed: Sequence[str], value_of: Option | None, last: str
) -> list[str]:
    from aetherscale.gateways.cli.tree import ENTRIES

    if value_of is not None:
        return _values(context, value_of)
    if last.startswith("-"):
        return [f"--{option.name}" for option in _options(node)]
    if node is None:
        return [entry.name for entry in ENTRIES]
    if isinstance(node, Group):
        return [member.name for member in node.members]
    left = node.arguments[len(typed) :] or tuple(argument for argument in node.arguments[-1:] if argument.many)
    if not left:
        return []
    said = {argument.name: word for argument, word in zip(node.arguments, typed, strict=False)}
    return _values(context, replace(left[0], completes=said.get(left[0].completes, left[0].completes)))


def _options(node: Command | Group | None) -> tuple[Option, ...]:
    return (*(node.options if isinstance(node, Command) else ()), *GLOBAL_OPTIONS)


def _values(context: Context, item: Option | Argument) -> list[str]:
    """The values that an option or argument can have. A node that does not answer offers none."""
    if item.choices:
        return list(item.choices)
    asked = {each.kind: (each.component, each.list_task) for each in identities()}.get(item.completes)
    if asked is None:
        return []
    try:
        found = context.client.items(*asked, {}, timeout_s=ANSWER_S)
        return [each[item.completes]["name"] for each in found]
    except (Failure, Refused):
        return []


COMPLETION = Group(
    "completion",
    "print a completion script for bash, zsh or fish",
    (
        _script("bash", BASH, "~/.local/share/bash-completion/completions/aetherscale"),
        _script("zsh", ZSH, "a file called _aetherscale in a directory of $fpath"),
        _script("fish", FISH, "~/.config/fish/completions/aetherscale.fish"),
        Command(
            "words",
            "print what can come next; used by the scripts",
            _words,
            arguments=(Argument("WORD", "what was typed so far", required=False, rest=True),),
            examples=("aetherscale completion words -- vm st",),
        ),
    ),
)
