"""From words to an exit status: parse, run, and tell of what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import Failure, bad_usage, later_version
from aetherscale.gateways.cli.grammar import Command, Entry, Group
from aetherscale.gateways.cli.output import Output
from aetherscale.gateways.cli.parse import DEFAULT_NAME, Parsed, parse
from aetherscale.gateways.cli.program import Program
from aetherscale.gateways.cli.tree import ENTRIES
from aetherscale.kernel.errors import Refused

DEFAULT_COMMAND = "serve"
ABOUT = (
    "Turns Linux hosts into a small VM cloud. Without a command it serves: it runs a node in the foreground. Then, in "
    "another terminal: aetherscale image build tiny; aetherscale vm create web --image tiny."
)
INTERRUPTED = 130
"""What a shell expects of a program that was ended by Ctrl-C."""


def run(
    words: Sequence[str],
    program: Program,
    *,
    entries: Sequence[Entry] = ENTRIES,
    default: str = DEFAULT_COMMAND,
    name: str = DEFAULT_NAME,
    about: str = ABOUT,
) -> int:
    """Run what was typed after the program's name; answers with the exit status."""
    out = Output(json="--json" in words)
    try:
        try:
            parsed = parse(words, entries, default, name)
            out = Output(json=bool(parsed.values["json"]))
            if parsed.values["version"]:
                out.line(f"{name} {program.version}")
                return 0
            if parsed.values["help"]:
                out.line(_help(parsed, entries, about))
                return 0
            if not isinstance(parsed.node, Command):
                out.note(_help(parsed, entries, about))
                raise bad_usage(f"{parsed.name}: a command is missing", f"{parsed.name} --help")
            if parsed.node.refused:
                raise later_version(parsed.name, parsed.node.refused)
            context = Context(parsed, program)
            if parsed.node.reads and _is_anothers(parsed.node, context):
                from aetherscale.gateways.cli import reader

                return reader.ask(words, program.environ)
            return parsed.node.run(context) or 0
        except Refused as refused:
            raise Failure.of_refusal(refused) from None
    except Failure as failure:
        out.failure(failure)
        return failure.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has read enough; what is still in the buffer must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _is_anothers(command: Command, context: Context) -> bool:
    """Whether it is the service's user who has to read."""
    from aetherscale.gateways.cli.place import reads_by_service

    return reads_by_service(context.settings, as_the_node=command.reads == "host")


def _help(parsed: Parsed, entries: Sequence[Entry], about: str) -> str:
    from aetherscale.gateways.cli import help as texts

    match parsed.node:
        case None:
            return texts.help_of_program(entries, parsed.program, about).rstrip("\n")
        case Group():
            return texts.help_of_group(parsed.node, parsed.name).rstrip("\n")
        case Command():
            return texts.help_of_command(parsed.node, parsed.name).rstrip("\n")
