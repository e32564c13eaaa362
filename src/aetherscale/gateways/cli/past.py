"""`replay`, `diff` and `why`: the log as the debugger. They read a state directory and need no server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from aetherscale.bus.refusals import words_of
from aetherscale.components import LATER, any_object, identities
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import bad_usage, later_version, meant
from aetherscale.gateways.cli.grammar import Argument, Command, Option
from aetherscale.gateways.cli.history import opened_log, position
from aetherscale.gateways.cli.moments import local_clock, local_with_zone
from aetherscale.gateways.cli.output import Output
from aetherscale.gateways.cli.views import WIDE, count, item_text, show_table

if TYPE_CHECKING:
    from aetherscale.debugger.diff import Change, Diff, FieldChange
    from aetherscale.debugger.why import Chapter, Why

KINDS = tuple(each.kind for each in identities())

AT = Option("at", "the state after this event, or at this time: 5m, yesterday, 16:00, 2026-11-28, RFC 3339", "SEQ|TIME")


def _replay(context: Context) -> None:
    kind = _kind(context)
    tenant, everything = context.settings.tenant, context.values["all"]
    past = asyncio.run(_past(context, context.values["at"], deleted=everything))
    views = {
        name: [msgspec.to_builtins(view) for view in past.views(name, tenant, deleted=everything)]
        for name in ((kind,) if kind else KINDS)
    }
    out = context.out
    if out.json:
        out.value(views[kind] if kind else views)
        return
    out.note(f"as of event {past.position} of node {past.node}")
    for name, found in views.items():
        if kind is None:
            out.line(f"{name}: {len(found)}")
        if found:
            show_table(out, name, found, context.program.now_us(), wide=context.values["wide"])


def _diff(context: Context) -> None:
    from aetherscale.debugger.diff import diff

    before, after = asyncio.run(_two(context, context.values["FROM"], context.values["TO"]))
    if before.position > after.position:
        raise bad_usage(f"diff: event {before.position} comes after event {after.position}", "swap the two moments")
    found = diff(before, after, context.settings.tenant)
    if context.out.json:
        context.out.value(found)
    else:
        show_diff(context.out, found)


def _why(context: Context) -> None:
    kind = _kind(context)
    assert kind is not None
    found = asyncio.run(_explained(context, kind))
    if context.out.json:
        context.out.value(found)
    else:
        _show_why(context, found)


async def _past(context: Context, moment: str | None, *, deleted: bool) -> Any:
    async with opened_log(context) as log:
        return await log.state_at(await position(context, log, moment), deleted=deleted)


async def _two(context: Context, first: str, second: str | None) -> tuple[Any, Any]:
    async with opened_log(context) as log:
        positions = [await position(context, log, moment, "the present is taken") for moment in (first, second)]
        return await log.state_at(positions[0]), await log.state_at(positions[1])


async def _explained(context: Context, kind_name: str) -> Why:
    from aetherscale.debugger.why import explain

    kinds = context.program.kinds()
    async with opened_log(context) as log:
        past = await log.state_at(await position(context, log, context.values["at"]))
        with meant(context.values["NAME"]):
            aggregate = past.find(kind_name, context.settings.tenant, context.values["NAME"])
        kind = next(kind for kind in kinds if kind.name == kind_name)
        return await explain(log, past, kind, aggregate, whole=context.values["all"])


def _kind(context: Context) -> str | None:
    kind: str | None = context.values["KIND"]
    if kind in LATER:
        raise later_version(f"{context.parsed.name} {kind}", f"one of {', '.join(KINDS)}")
    return kind


def show_diff(out: Output, found: Diff) -> None:
    """What changed between two moments, for a person to read."""
    out.note(f"from event {found.before} to event {found.after}")
    if not found.changes:
        out.line("nothing changed")
    for change in found.changes:
        out.line(_headline(change))
        if _came_and_went(change):
            continue
        for field in change.fields:
            if change.change == "added" and field.after in (None, [], {}):
                continue
            if isinstance(field.before, list) or isinstance(field.after, list):
                for line in _items(field, new=change.change == "added"):
                    out.line(f"    {field.field}: {line}")
                continue
            before = "" if change.change == "added" else f"{_short(field.before)} → "
            out.line(f"    {field.field}: {before}{_short(field.after)}")


def _items(field: FieldChange, *, new: bool) -> list[str]:
    """What came and what went of a field that has many values; all of them where the object, or their order alone, is
    new.
    """
    before, after = ([item_text(field.field, each) for each in of or ()] for of in (field.before, field.after))
    lines = [f"- {each}" for each in before if each not in after] + [
        f"+ {each}" for each in after if each not in before
    ]
    return after if new else lines or ["; ".join(after)]


def _headline(change: Change) -> str:
    what = f"{change.kind} {change.name} ({change.id})"
    if _came_and_went(change):
        return f"± {what}: created and deleted in between"
    if any(field.field == "phase" and field.after == "deleted" for field in change.fields):
        return f"- {what}"
    return f"{'+' if change.change == 'added' else '~'} {what}"


def _came_and_went(change: Change) -> bool:
    """Whether it was there at neither of the two moments."""
    return change.change == "added" and any(f.field == "phase" and f.after == "deleted" for f in change.fields)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    first, newline, _ = text.strip("\n").partition("\n")
    return f"{first} …" if newline else first


def _show_why(context: Context, found: Why) -> None:
    out, view = context.out, msgspec.to_builtins(found.view)
    since = local_with_zone(view["since"]) if out.terminal else view["since"]
    out.paragraph(f"{found.kind} {found.name} ({found.id}) is {view['phase']} (since {since}): {found.summary}.", 4)
    shown: set[tuple[str, str]] = set()
    for at, chapter in enumerate(found.chapters):
        out.line()
        elsewhere = f"{chapter.kind} {chapter.id}: " if chapter.id != found.id else ""
        first, *others = _chapter(chapter, elsewhere, here=out.terminal)
        out.paragraph(first, 4)
        for line in others:
            out.paragraph(line, 16)
        if not chapter.complete and at == 0:
            out.line("  …")
        shown.add((chapter.id, chapter.command_id))
    for mention in found.mentions:
        out.line()
        out.paragraph(f"{mention.kind} {mention.name} ({mention.id}): {mention.text}.", 4)
    if found.left_out:
        out.line()
        left_out = count(found.left_out, "event")
        out.paragraph(f"{left_out} that did not lead to this state left out; --all shows everything.")


def _chapter(chapter: Chapter, elsewhere: str, *, here: bool) -> Sequence[str]:
    """The first sentence with who and when; under it what came of it; each with its time: UTC, or of this place."""
    first, *others = chapter.sentences
    who = f"{chapter.actor} " if chapter.role == "request" else ""
    time = local_with_zone(first.time) if here else first.time
    lines = [f"{time}  {elsewhere}{who}{first.text}  [event {first.seq}, command {chapter.command_id}]"]
    if chapter.cause is not None:
        lines.append(f"  because of {chapter.cause}")
    clock = local_clock if here else lambda time: time[11:23]
    lines += [f"  {clock(other.time)}  {other.text}  [{other.seq}]" for other in others]
    return lines


_LISTED = [f"`{words_of(kind)} list`" for kind in KINDS]
_LISTS = f"{', '.join(_LISTED[:-1])} and {_LISTED[-1]}"
_NAME = Argument("NAME", "the name or id of the object, also of a deleted one", completes="KIND")

REPLAY = Command(
    "replay",
    "show the state at any moment, from the log alone",
    _replay,
    reads="log",
    arguments=(Argument("KIND", "only objects of this kind", required=False, choices=KINDS, later=LATER),),
    options=(AT, Option("all", "include deleted objects"), WIDE),
    examples=(
        "aetherscale replay",
        "aetherscale replay --at 12 vm",
        "aetherscale replay --at 2026-01-31T12:00:00Z --json",
    ),
    details=(
        "Replays the log in the state directory up to a moment, as the node itself does. For the present it shows what "
        f"{_LISTS} show. It works with and without a running node.\n\n"
        "With --json it prints an array of the objects of one kind, or without a kind an object keyed by kind."
    ),
)

DIFF = Command(
    "diff",
    "show what changed between two moments",
    _diff,
    reads="log",
    arguments=(
        Argument("FROM", "the number of an event, or a time: 5m, yesterday, 16:00, 2026-11-28, RFC 3339"),
        Argument("TO", "the same; the present if not given", required=False),
    ),
    examples=("aetherscale diff 12", "aetherscale diff 12 40", "aetherscale diff 2026-01-31T12:00:00Z --json"),
    details="Lists every changed object with its changed fields. A deleted object is one whose phase is now `deleted`.",
)

WHY = Command(
    "why",
    f"explain why {any_object()} is in its present state",
    _why,
    reads="log",
    arguments=(Argument("KIND", "the kind of the object", choices=KINDS, later=LATER), _NAME),
    options=(AT, Option("all", "the whole history, not only the events that led to the present state")),
    examples=(
        "aetherscale why vm web",
        "aetherscale why vm web --at 17",
        "aetherscale why network lab",
        "aetherscale why image tiny --all",
    ),
    details=(
        "Shows who requested what, when and by which command; what the host did; what happened without a request; and "
        "what the restart policy did about it. Events that did not lead to the present state are left out, unless "
        "--all is given."
    ),
)
