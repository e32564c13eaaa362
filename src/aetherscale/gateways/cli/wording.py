"""Translates a node's messages into the words of the command line: `--memory`, not `field 'memory-mib'`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Final

from aetherscale.bus.refusals import words_of
from aetherscale.components import identities
from aetherscale.gateways.cli.failures import USAGE, Failure
from aetherscale.gateways.cli.grammar import Argument, Command, Option
from aetherscale.gateways.cli.parse import Parsed
from aetherscale.kernel.names import ID_PATTERN, is_id

TYPED_AS: Final[Mapping[str, tuple[str, ...]]] = {
    "addresses": ("address",),
    "allow-addresses": ("allow-address",),
    "command": ("COMMAND",),
    "group": ("GROUP", "group", "NAME"),
    "groups": ("group",),
    "guest-port": ("PORTS",),
    "host-address": ("address",),
    "host-port": ("PORTS", "HOST"),
    "image": ("image", "NAME"),
    "ipv4-prefix": ("ipv4",),
    "ipv6-prefix": ("ipv6",),
    "labels": ("label",),
    "name": ("name", "NAME"),
    "network": ("network", "NETWORK"),
    "packages": ("package",),
    "recipe": ("RECIPE",),
    "rules": ("allow",),
    "source": ("SOURCE",),
    "ssh-keys": ("ssh-key",),
    "virtual-network": ("network",),
    "vm-id": ("vm-id", "VM", "NAME"),
}
"""The fields of messages that are not called as the option or argument that fills them, with or without their unit."""
_TASK: Final = re.compile(r"\A(?:[a-z]+\.)?[a-z]+(?:-[a-z]+)+: ")
_UNIT: Final = re.compile(r"-(?:mib|gib|bytes|s)\Z")
_VALUE: Final = "got "
"""A message that begins so is about a value, and names no field."""
_NUMBER: Final = re.compile(r"got -?[0-9][0-9.e+]*, expected")
_KINDS: Final = "|".join(words_of(each.kind) for each in identities())
_FILE: Final = re.compile(r"\bFILE\b")
"""What a hint calls the file whose text was refused: a node does not know its name."""
_COMMAND: Final = re.compile(rf"\baetherscale (?=(?:{_KINDS}|firewall|events|why|replay|diff|log|node|doctor)\b)")
"""A command whose answer depends on the node and on the tenant."""


def typed(failure: Failure, parsed: Parsed) -> Failure:
    """The failure with its text for humans in the words of the command line; the text for programs stays as it is."""
    if not isinstance(parsed.node, Command):
        return failure
    field, *_ = re.split(r"[.\[]", str(failure.details.get("field") or ""))
    if word := _word(field, parsed.node):
        shown = re.sub(rf"(?:field )?'{re.escape(field)}(?:\[[0-9]+\])?'", lambda _: word, failure.message, count=1)
        if shown.startswith(_VALUE):
            shown = f"{parsed.name}: {word}: {shown}"
        text = parsed.texts.get(word.removeprefix("--"))
        if text is not None:
            # What was read as a number of MiB, or of seconds, was typed as 2G, or as 5m.
            shown = _NUMBER.sub(lambda found: f"got {text!r}, expected", shown, count=1)
        elif word.startswith("--") and word not in shown:
            shown = f"{word}: {shown}"
        failure.shown = _TASK.sub(f"{parsed.name}: ", shown)
        if text is not None and word.startswith("--") and text != "-":
            failure.hint = _FILE.sub(lambda _: shlex.quote(text), failure.hint)
        if failure.status == USAGE and not failure.hint:
            failure.hint = _of_commas(word, failure.message, parsed.node)
    failure.hint = again(_named(failure.hint, parsed, parsed.node), parsed)
    return failure


def _of_commas(word: str, message: str, command: Command) -> str:
    """How several values are typed, where what was refused looks like several; "" where it does not."""
    if not re.search(r"got '[^',]+,[^',]", message):
        return ""
    if any(f"--{option.name}" == word and option.many for option in command.options):
        return f"several are typed as {word} ONE {word} OTHER"
    is_list = any(argument.name == word and argument.many for argument in command.arguments)
    return f"several are typed with spaces between: {word} {word}" if is_list else ""


def _named(text: str, parsed: Parsed, command: Command) -> str:
    """A text that calls an object as it was typed, where the node has its id."""
    given = {argument.name: parsed.values.get(argument.name) for argument in command.arguments}
    items: tuple[Argument | Option, ...] = (*command.arguments, *command.options)
    for item in items:
        name = parsed.values.get(item.name)
        if isinstance(name, list) and len(name) == 1:
            (name,) = name
        kind = given.get(item.completes, item.completes)
        if kind and isinstance(name, str) and not is_id(name):
            text = re.sub(rf"(\baetherscale {words_of(kind)} [a-z-]+) {ID_PATTERN[2:-2]}\b", rf"\1 {name}", text)
    return text


def again(text: str, parsed: Parsed) -> str:
    """A text whose commands mean the node and the tenant that were typed."""
    return _COMMAND.sub(lambda _: f"aetherscale {_whose(parsed)}", text)


def _whose(parsed: Parsed) -> str:
    """The options that a command of the hint needs to mean the same objects as this one."""
    named = {option: parsed.texts[option] for option in ("tenant", "state-dir") if option in parsed.texts}
    return "".join(f"--{option} {shlex.quote(text)} " for option, text in named.items())


def typed_as(field: str) -> tuple[str, ...]:
    """The options and arguments that may fill a field of a message."""
    return TYPED_AS.get(field, (field, _UNIT.sub("", field)))


def _word(field: str, command: Command) -> str:
    """How the option or argument that fills a field is typed; "" for a field that no word fills."""
    options = {option.name for option in command.options}
    arguments = {argument.name for argument in command.arguments}
    for name in typed_as(field):
        if name in options:
            return f"--{name}"
        if name in arguments:
            return name
    return ""
