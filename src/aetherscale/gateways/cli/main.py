"""From words to an exit status: parse, run, and report errors."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import DONE, FAILED, Failure, bad_usage, later_version
from aetherscale.gateways.cli.grammar import Command, Entry, Group
from aetherscale.gateways.cli.output import Output
from aetherscale.gateways.cli.parse import DEFAULT_NAME, Parsed, parse
from aetherscale.gateways.cli.program import Program
from aetherscale.gateways.cli.standard import Unwritable
from aetherscale.gateways.cli.tree import ENTRIES
from aetherscale.gateways.cli.wording import typed
from aetherscale.kernel.errors import Refused

DEFAULT_COMMAND = "serve"
ABOUT = (
    "Turns Linux hosts into a small VM cloud. Without a command it serves: it runs a node in the foreground. Then, in "
    "another terminal: aetherscale image build tiny; aetherscale vm create web --image tiny."
)
INTERRUPTED = 130
"""The exit status that a shell expects of a program that was ended by Ctrl-C."""
DEBUG = "AETHERSCALE_DEBUG"
"""With this in the environment a fault of our own is shown as Python shows it."""
PLACES = 4
"""How many of the places that led to such a fault are named."""


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
            return _run(words, program, entries, default, name, about)
        except Refused as refused:
            raise Failure.of_refusal(refused) from None
        except BrokenPipeError:
            return 0  # nobody reads our output any more, and nothing is waiting to be written
        except OSError as error:
            raise _failure_of_host(error, name) from None
        except (Failure, Unwritable):
            raise
        except Exception as fault:
            if program.environ.get(DEBUG):
                raise
            raise _own_fault(fault, name) from None
    except Failure as failure:
        out.failure(failure)
        return failure.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Unwritable as gone:
        if gone.errno == errno.EPIPE:
            return 0  # whoever read our output has read enough
        out.failure(Failure(500, f"{gone}; {gone.done}" if gone.done else str(gone)))
        return FAILED
    finally:
        with suppress(Unwritable):
            sys.stdout.flush()


def _run(words: Sequence[str], program: Program, entries: Sequence[Entry], default: str, name: str, about: str) -> int:
    parsed = parse(words, entries, default, name)
    out = Output(json=bool(parsed.values["json"]))
    if parsed.values["version"]:
        out.line(f"{name} {program.version}")
        return DONE
    if parsed.values["help"]:
        out.line(_help(parsed, entries, about))
        return DONE
    if not isinstance(parsed.node, Command):
        out.note(_help(parsed, entries, about))
        raise bad_usage(f"{parsed.name}: a command is missing", f"{parsed.name} --help")
    if parsed.node.refused:
        raise later_version(parsed.name, parsed.node.refused)
    context = Context(parsed, program)
    if parsed.node.reads and _is_anothers(parsed.node, context):
        from aetherscale.gateways.cli import reader

        return reader.ask(words, program.environ)
    try:
        status = parsed.node.run(context) or DONE
    except Refused as refused:
        failure = Failure.of_refusal(refused)
        if failure.details.get("missing") == "event-log":
            from aetherscale.gateways.cli.place import start

            failure.hint += f", or start one: {start(context.settings)}"
        raise typed(failure, parsed) from None
    except Failure as failure:
        raise typed(failure, parsed) from None
    sys.stdout.flush()  # what stdout does not take has to be known while it can be told
    return status


def _failure_of_host(error: OSError, name: str) -> Failure:
    """An error of the host, where no command has better words for it."""
    from aetherscale import shortage

    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    hint = shortage.hint_of(error.errno) or "aetherscale doctor"
    return Failure(500, f"{name}: {where}{error.strerror or error}", hint=hint)


def _own_fault(fault: Exception, name: str) -> Failure:
    if isinstance(fault, MemoryError):
        return Failure(500, f"{name}: there is not enough memory", hint="raise the limit, or end something else")
    from aetherscale import shortage

    if shortage.lacks_threads(fault):
        return Failure(500, f"{name}: {shortage.THREADS}", hint="raise the limit: ulimit -u, TasksMax=, pids.max")
    import traceback

    places = traceback.extract_tb(fault.__traceback__)[: -PLACES - 1 : -1]
    where = " < ".join(f"{place.filename.rpartition('/')[2]}:{place.lineno}" for place in places)
    what = " ".join(f"{type(fault).__name__}: {fault}".split())[:500]
    return Failure(
        500,
        f"{name}: this is a fault of {name} itself: {what} ({where})",
        hint=f"report it with what you typed; {DEBUG}=1 in the environment shows all of it",
    )


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
        case Command(parts=parts):
            for argument in parsed.node.arguments:
                if (part := parts.get(str(parsed.values.get(argument.name)))) is not None:
                    return texts.help_of_command(part, f"{parsed.name} {part.name}").rstrip("\n")
            return texts.help_of_command(parsed.node, parsed.name).rstrip("\n")
