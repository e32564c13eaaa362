"""`log`: the log itself, whether it is whole, and its way out and in as JSON Lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import msgspec

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import DONE, FAILED, NO_NODE, Failure, bad_usage
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.history import tell_future
from aetherscale.gateways.cli.values import number
from aetherscale.gateways.cli.views import count, size
from aetherscale.kernel.times import to_rfc3339

if TYPE_CHECKING:
    from aetherscale.debugger.maintenance import Archived, LogInfo, Verification, Witnessed

STANDARD = "-"
DAMAGED = "aetherscale log export > log.jsonl saves what is verified; import it into a new --state-dir"
NOT_WITNESSED = (
    "if you restored a backup yourself, start a new file of heads; otherwise trust nothing after that event, compare "
    "the log with its copy in JetStream and with a backup, and find out who can write to the state directory"
)
OTHER_LOG = (": log rolled back: ", ": log rewritten: ", ": no head of node ")
"""How it says after the path what only heads that were kept elsewhere reveal."""


def _verify(context: Context) -> int:
    from aetherscale.debugger.maintenance import verify

    witnessed = _witnessed(context)
    found = verify(context.settings.state_dir, context.program.kinds(), witnessed)
    if context.out.json:
        context.out.value(found)
    else:
        whole = f"{count(found.events, 'event')} in {count(found.commits, 'commit')} are as they were written"
        context.out.line(whole if found.events or not found.problems else "nothing could be verified")
        if found.witnessed is not None:
            context.out.line(_fitting(found.witnessed, len(witnessed or ())))
        for problem in found.problems:
            context.out.line(f"problem: {problem.message}")
    if found.problems:
        context.suggest(f"hint: {NOT_WITNESSED if _only_not_witnessed(found) else DAMAGED}")
    return FAILED if found.problems else DONE


def _fitting(matching: int, of: int) -> str:
    return f"{matching} of {count(of, 'witnessed head')} {'matches' if matching == 1 else 'match'}"


def _only_not_witnessed(found: Verification) -> bool:
    """Whether the log is whole, but not the one whose heads were kept."""
    return all(any(each in problem.message for each in OTHER_LOG) for problem in found.problems)


def _witnessed(context: Context) -> list[Witnessed] | None:
    from aetherscale.debugger.maintenance import read_witnessed

    name = context.values["witness"]
    if name is None:
        return None
    try:
        if not Path(name).exists():
            raise bad_usage(f"log verify: there is no {name}", "aetherscale log witness FILE makes one")
        return read_witnessed(Path(name))
    except OSError as error:
        raise bad_usage(f"log verify: {name} cannot be read: {error.strerror}") from None


def _witness(context: Context) -> None:
    from aetherscale.debugger.maintenance import keep, witness

    node, name = context.values["of"], context.values["FILE"]
    found = _heard(context, node) if node else witness(context.settings.state_dir, context.program.now_us())
    try:
        is_new = keep(Path(name), found)
    except OSError as error:
        raise Failure(500, f"log witness: {name} cannot be written: {error.strerror}") from None
    if context.out.json:
        context.out.value(found)
    else:
        done = "kept" if is_new else "known already"
        context.out.line(f"{done}: event {found.head_seq} of node {found.node}, hash {found.head_hash}")


def _heard(context: Context, node: str) -> Witnessed:
    """The head that a node reports on request."""
    from aetherscale.debugger.maintenance import decode
    from aetherscale.kernel import wire

    found = [beat for beat in context.client.nodes() if beat.node == node]
    if not found:
        raise Failure(503, f"no node {node!r} answers", hint="aetherscale node list", status=NO_NODE)
    if len(found) > 1:
        raise Failure(500, f"log witness: {len(found)} nodes are named {node}; stop all but one: aetherscale node list")
    try:
        return decode(wire.encode(found[0]))
    except ValueError as wrong:
        raise Failure(500, f"log witness: the heartbeat of {node} does not report its head: {wrong}") from None


def _export(context: Context) -> int:
    from aetherscale.debugger.maintenance import export

    with _opened(context.values["FILE"], "xb") as file:
        done = export(context.settings.state_dir, file.write)
    context.out.note(f"{count(done.events, 'event')}, {count(done.commands, 'command')}")
    if done.damage is not None:
        raise Failure(500, f"log export: what follows is damaged and was left out: {done.damage}")
    return DONE


def _import(context: Context) -> None:
    from aetherscale.debugger.maintenance import import_

    with _opened(context.values["FILE"], "rb") as file:
        done = import_(
            context.settings.state_dir, file, epoch=context.program.new_epoch(), now_us=context.program.now_us()
        )
    if context.out.json:
        context.out.value({"events": done.events, "commands": done.commands})
        return
    context.out.line(f"imported {count(done.events, 'event')}, {count(done.commands, 'command')}")
    context.out.note(f"next: aetherscale --state-dir {context.settings.state_dir} replay")


def _archive(context: Context) -> None:
    from aetherscale.debugger.maintenance import KEPT_EVENTS, archive, preview

    state_dir, before, keep = context.settings.state_dir, context.values["before"], context.values["keep"]
    if before is not None and keep is not None:
        raise bad_usage("log archive: --before and --keep say two things", "give one of them")
    tell_future(context, before, "all events are before it")
    kept = KEPT_EVENTS if keep is None else keep
    if context.values["dry-run"]:
        done = preview(state_dir, before=before, now_us=context.program.now_us(), keep=kept)
    else:
        with context.out.progress("log") as progress:
            progress.step("proving every event")
            done = archive(
                state_dir,
                before=before,
                now_us=context.program.now_us(),
                keep=kept,
                report=lambda sealed, total: progress.step("sealing", f"{sealed} of {count(total, 'event')}"),
            )
    if context.out.json:
        context.out.value(done)
    else:
        _tell_archived(context, done)


def _why_nothing(context: Context) -> str:
    """Why no event was sealed: all are to stay, or those that are not are too few."""
    from aetherscale.debugger.maintenance import KEPT_EVENTS, SEGMENT_EVENTS, info

    before, keep = context.values["before"], context.values["keep"]
    needed = f"a segment needs {SEGMENT_EVENTS}"
    if before is not None:
        return f"too few events that are not sealed are before {before}; {needed}"
    found = info(context.settings.state_dir)
    unsealed, kept = found.events - found.sealed_to, KEPT_EVENTS if keep is None else keep
    if unsealed <= kept:
        shown = f"{count(unsealed, 'event')} of the log that {'is' if unsealed == 1 else 'are'} not sealed"
        return f"the {shown} stay as they are, since the newest {kept} are kept; see --keep and --before"
    return f"without the newest {kept}, which are kept, {count(unsealed - kept, 'event')} could be sealed; {needed}"


def _tell_archived(context: Context, done: Archived) -> None:
    if not done.events:
        context.out.line(f"nothing to seal: {_why_nothing(context)}")
    elif context.values["dry-run"]:
        would = f"{count(done.events, 'event')} would go into {count(done.segments, 'segment')}"
        context.out.line(f"{would}, up to event {done.sealed_to}; nothing was changed")
    else:
        context.out.line(
            f"sealed {count(done.events, 'event')} in {count(done.segments, 'segment')}, up to event {done.sealed_to}"
        )
        saved = done.before_bytes - done.after_bytes
        context.out.line(
            f"the log takes {size(done.after_bytes)} now, {size(done.before_bytes)} before: {size(saved)} saved"
            if done.reclaimed
            else f"the log still takes {size(done.after_bytes)}: making it smaller needs room for a copy of it on the "
            f"disk; later events use what is free in it, and the next `log archive` tries again"
        )


def _info(context: Context) -> None:
    from aetherscale.debugger.maintenance import info

    found = info(context.settings.state_dir)
    shown = _shown(found)
    if context.out.json:
        context.out.value(shown)
        return
    if found.segments:
        sealed = f"up to event {found.sealed_to}, in {count(found.segments, 'segment')} of {size(found.sealed_bytes)}"
        shown |= {"sealed": sealed}
    del shown["sealed-to"], shown["segments"], shown["sealed-bytes"]
    shown |= {"size": size(found.size_bytes), "types": ", ".join(f"{each.type}/{each.schema}" for each in found.types)}
    del shown["size-bytes"]
    context.out.fields(shown.items())


def _shown(found: LogInfo) -> dict[str, object]:
    times = {"created": found.created_us, "first": found.first_us, "last": found.last_us}
    return {
        "path": found.path,
        "node": found.node,
        "epoch": found.epoch,
        "epochs": found.epochs,
        "events": found.events,
        "streams": found.streams,
        "commands": found.commands,
        "commits": found.commits,
        **{name: to_rfc3339(moment) if moment is not None else None for name, moment in times.items()},
        "types": msgspec.to_builtins(found.types),
        "size-bytes": found.size_bytes + found.wal_bytes,
        "sealed-to": found.sealed_to,
        "segments": found.segments,
        "sealed-bytes": found.sealed_bytes,
    }


@contextmanager
def _opened(name: str | None, mode: Literal["rb", "xb"]) -> Iterator[BinaryIO]:
    """A file, or with `-` or nothing the standard stream. An existing file is not written over."""
    if name in (None, STANDARD):
        yield sys.stdin.buffer if mode == "rb" else sys.stdout.buffer
        sys.stdout.flush()
        return
    try:
        with Path(str(name)).open(mode) as file:
            yield file
    except FileExistsError:
        raise bad_usage(f"log export: {name} exists already", "name another file") from None
    except FileNotFoundError:
        raise bad_usage(f"log: there is no {name}") from None
    except OSError as error:
        raise bad_usage(f"log: {name} cannot be opened: {error.strerror}", "name another file") from None


_LINES = "a file of JSON Lines; `-` or nothing is"

LOG = Group(
    "log",
    "the event log itself",
    (
        Command(
            "verify",
            "verify that every event is as it was written",
            _verify,
            reads="log",
            options=(
                Option("witness", "also verify that the log has the heads in this file", "FILE", completes="file"),
            ),
            examples=(
                "aetherscale log verify",
                "aetherscale log verify --state-dir ./copy",
                "aetherscale log verify --witness /mnt/elsewhere/heads.jsonl",
            ),
            details=(
                "Recomputes the hash chain over every commit, compares its end with the head file, and decodes every "
                "event. It only reads, and works beside a running node. Exit status 1 if anything is not as it was "
                "written.\n\n"
                "Anyone who can write to the state directory can put an older copy there, or write a new log with a "
                "new head. Only heads that are kept elsewhere reveal that: see `aetherscale log witness`."
            ),
        ),
        Command(
            "witness",
            "keep the head of the log elsewhere, to detect a rewritten or rolled back log",
            _witness,
            arguments=(Argument("FILE", "the file to append heads to, one line each", completes="file"),),
            options=(
                Option(
                    "of",
                    "ask this node for the head instead of reading the state directory",
                    "NODE",
                    completes="node",
                ),
            ),
            examples=(
                "aetherscale log witness /mnt/elsewhere/heads.jsonl",
                "aetherscale log witness heads.jsonl --of host1 --nats nats://10.0.0.1:4222 --nats-creds ./my.creds",
            ),
            details=(
                "Appends the position and the hash of the last commit to the file, unless they are its last line. Keep "
                "the file where the node cannot write: on another host, or on append-only storage. `aetherscale log "
                "verify --witness FILE` compares the log with it."
            ),
        ),
        Command(
            "export",
            "write the log as JSON Lines",
            _export,
            arguments=(Argument("FILE", f"{_LINES} stdout", required=False, completes="file"),),
            examples=("aetherscale log export > log.jsonl", "aetherscale log export backup.jsonl"),
            details="Of a damaged log it writes what can be verified, and says what it leaves out. Exit status 1 then.",
        ),
        Command(
            "import",
            "create the log of a new state directory from an export",
            _import,
            arguments=(Argument("FILE", f"{_LINES} stdin", required=False, completes="file"),),
            examples=("aetherscale log import log.jsonl --state-dir ./restored",),
            details="Imports everything or nothing. A state directory that already has events is left as it is.",
        ),
        Command(
            "archive",
            "compress old events, which stay readable",
            _archive,
            options=(
                Option("keep", "how many of the newest events to leave as they are; 100000 if not given", "N", number),
                Option("before", "only events before this event or time", "SEQ|TIME"),
                Option("dry-run", "only print what would be done"),
            ),
            examples=(
                "aetherscale log archive",
                "aetherscale log archive --before 2026-01-01T00:00:00Z",
                "aetherscale log archive --keep 10000 --dry-run",
            ),
            details=(
                "Moves old events, a thousand and more at a time, into compressed segments of the same file. Nothing "
                "is lost: replay, diff, why, events, export and verify read them as before, and the hash chain covers "
                "both. Stop the node first; VMs keep running. For a moment it needs room for a copy of the smaller "
                "log. Everything is verified before anything is moved.\n\n"
                "An older version of aetherscale refuses a log that was archived."
            ),
        ),
        Command(
            "info",
            "show the node, the size and the contents of the log",
            _info,
            reads="log",
            examples=("aetherscale log info", "aetherscale log info --json"),
        ),
    ),
)
