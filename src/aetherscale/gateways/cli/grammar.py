"""The words of the command line: groups, commands, their arguments and options. Data, read by the parser, the help, the
shell completion and the generated pages. Knows nothing of what a command does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from aetherscale.gateways.cli.context import Context

Read = Callable[[str], Any]
"""Turns the text of a value into what it means. Raises ValueError that says what was expected."""


class Option(Struct, frozen=True):
    """A flag. With an empty `metavar` it is a switch: absent is False, present is True."""

    name: str
    """Without the dashes, e.g. `no-wait`; what was given is found under this name."""
    help: str
    metavar: str = ""
    read: Read = str
    default: str | None = None
    """As it would be typed."""
    many: bool = False
    """Whether it may be given more than once: its value is a list."""
    choices: tuple[str, ...] = ()
    completes: str = ""
    """The kind of values that the shell offers: `vm`, `image`, `node`, `file` or `dir`."""
    short: str = ""
    """One letter, or nothing."""
    needed: bool = False
    """Whether the command makes no sense without it."""


class Argument(Struct, frozen=True):
    """A word without dashes. The last one of a command may stand for all the words that remain."""

    name: str
    help: str
    read: Read = str
    required: bool = True
    many: bool = False
    """Whether it may be given more than once, options in between: its value is a list."""
    rest: bool = False
    """Whether it takes every word that remains as it is, dashes and all: its value is a list."""
    choices: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    """Choices of a later version, which the command refuses as such; they are offered nowhere."""
    completes: str = ""
    """As of an option; or the name of an argument before it, which says the kind."""


class Command(Struct, frozen=True):
    """Something that can be done. `run` answers with the exit status, None standing for 0."""

    name: str
    summary: str
    run: Callable[[Context], int | None]
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    examples: tuple[str, ...] = ()
    details: str = ""
    reads: Literal["", "log", "host"] = ""
    """Whether it only reads, and what: the log of a state directory, or this host as the node sees it. For the node
    of a service such a command is run by the service's user where need be; see `reader.py`."""
    parts: Mapping[str, Command] = {}
    """What has a help of its own, by the choice of an argument that means it."""
    refused: str = ""
    """Where the command belongs to a later version: what does not work yet. Its words are then not looked at."""


class Group(Struct, frozen=True):
    """A word under which commands are found."""

    name: str
    summary: str
    members: tuple[Command | Group, ...]


class Entry(Struct, frozen=True):
    """A word at the top. Its group or command is loaded only when it is meant, so that the others cost nothing."""

    name: str
    summary: str
    load: Callable[[], Command | Group]


GLOBAL_OPTIONS: tuple[Option, ...] = (
    Option("json", "print JSON: one object, or one array for a list"),
    Option("state-dir", "the state directory of the node", "DIR", completes="dir"),
    Option("nats", "the NATS server to use instead of the node's own, e.g. nats://HOST:4222", "URL"),
    Option("nats-creds", "the .creds file to use with --nats", "FILE", completes="file"),
    Option("nats-nkey", "the file with the seed of the nkey to use with --nats", "FILE", completes="file"),
    Option("nats-token-file", "the file with the token to use with --nats", "FILE", completes="file"),
    Option("config", "the settings file to read", "FILE", completes="file"),
    Option("tenant", "the tenant whose objects are meant; `default` if not given", "NAME"),
    Option("help", "show the help of a command", short="h"),
    Option("version", "show the version"),
)
"""Understood before and after every command."""
