"""`events`: what is in the log, event by event, and what types of events there are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import Failure, meant
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.history import opened_log
from aetherscale.gateways.cli.values import number
from aetherscale.gateways.cli.views import show_object
from aetherscale.kernel.messages import stream_name

if TYPE_CHECKING:
    from aetherscale.debugger.past import PastLog
    from aetherscale.kernel.messages import Recorded

HEADERS = ("SEQ", "TIME", "STREAM", "TYPE", "ACTOR", "DATA")
MOST_DATA = 72


def _list(context: Context) -> None:
    found = asyncio.run(_listed(context))
    if context.out.json:
        context.out.value(found)
    else:
        context.out.table(HEADERS, [_row(event) for event in found])


def _tail(context: Context) -> int:
    try:
        asyncio.run(_tailed(context))
    except KeyboardInterrupt:
        return 0
    return 0


def _show(context: Context) -> None:
    event = asyncio.run(_one(context, context.values["SEQ"]))
    if context.out.json:
        context.out.value(event)
        return
    show_object(context.out, event)


def _catalogue(context: Context) -> None:
    from aetherscale.debugger.events import catalogue

    types = catalogue(context.program.kinds())
    if context.out.json:
        context.out.value(types)
        return
    for at, event in enumerate(types):
        context.out.line(f"{chr(10) if at else ''}{event.kind}: {event.type} (schema {event.schema}): {event.about}")
        for field in event.fields:
            context.out.line(f"    {field.name}: {field.type}")


async def _listed(context: Context) -> list[dict[str, Any]]:
    from aetherscale.debugger.events import event_json

    limit = context.values["limit"]
    found: list[dict[str, Any]] = []
    async with opened_log(context) as log:
        head = await log.head()
        wanted = await _Wanted.of(context, log, head)
        after, until = await _between(context, log, head)
        async for page in log.pages(after, until, wanted.types):
            found += [event_json(each) for each in wanted.among(page)]
            if limit is not None and len(found) >= limit:
                return found[:limit]
    return found


async def _between(context: Context, log: PastLog, head: int) -> tuple[int, int]:
    """The position before the first event that was asked for, and that of the last one. Raises `Refused`."""
    after, since, until = (context.values[name] for name in ("after", "since", "until"))
    now_us = context.program.now_us()
    if since is not None:
        after = max(after, await log.before(since, now_us))
    return after, head if until is None else await log.position(until, now_us)


async def _tailed(context: Context) -> None:
    from aetherscale.debugger.events import event_json

    async with opened_log(context) as log:
        head = await log.head()
        wanted = await _Wanted.of(context, log, head)
        after = head if context.values["after"] is None else context.values["after"]
        async for page in log.follow(after):
            for each in wanted.among(page):
                event = event_json(each)
                if context.out.json:
                    context.out.json_line(event)
                else:
                    context.out.line("  ".join(_row(event)))


async def _one(context: Context, seq: int) -> dict[str, Any]:
    from aetherscale.debugger.events import event_json

    async with opened_log(context) as log:
        event = await log.event(seq)
        if event is None:
            raise Failure(404, f"there is no event {seq}: the log ends at {await log.head()}", hint="events start at 1")
        return event_json(event)


class _Wanted:
    """Which events were asked for."""

    def __init__(self, streams: frozenset[str], types: list[str] | None) -> None:
        self.types = types
        self._streams = streams

    @classmethod
    async def of(cls, context: Context, log: PastLog, head: int) -> _Wanted:
        """What the flags say. Raises `Failure` for an object or a type that is not known."""
        from aetherscale.debugger.events import type_named

        streams = set()
        past = await log.state_at(head) if context.values["vm"] or context.values["image"] else None
        for kind in ("vm", "image"):
            for reference in context.values[kind]:
                assert past is not None
                with meant(reference):
                    entity = past.find(kind, context.settings.tenant, reference)
                streams.add(stream_name(kind, entity.id))
        types = []
        for text in context.values["type"]:
            with meant(text):
                types.append(type_named(context.program.kinds(), text))
        return cls(frozenset(streams), types or None)

    def among(self, page: Sequence[Recorded]) -> list[Recorded]:
        """Those of a page that are wanted."""
        return [
            each
            for each in page
            if (not self._streams or each.stream in self._streams)
            and (self.types is None or type(each.event).__name__ in self.types)
        ]


def _row(event: Mapping[str, Any]) -> tuple[str, ...]:
    data = " ".join(f"{name}={_short(value)}" for name, value in event["data"].items() if value not in (None, "", {}))
    shown = data if len(data) <= MOST_DATA else f"{data[: MOST_DATA - 1]}…"
    return (str(event["seq"]), event["time"], event["stream"], event["type"], event["actor"], shown)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if " " not in text and "\n" not in text else msgspec.json.encode(text).decode()


_OF = (
    Option("vm", "only events of this VM, by name or id", "NAME", many=True, completes="vm"),
    Option("image", "only events of this image, by name or id", "NAME", many=True, completes="image"),
    Option("type", "only events of this type, e.g. VmBooted or vm-booted", "TYPE", many=True),
)

EVENTS = Group(
    "events",
    "what has happened: the events of the log",
    (
        Command(
            "list",
            "the events of the log, the oldest first",
            _list,
            reads="log",
            options=(
                Option("after", "only events after this number", "SEQ", number, default="0"),
                *_OF,
                Option("since", "only this event and later ones, or from this time on: 5m, yesterday …", "SEQ|TIME"),
                Option("until", "only events up to this one, or up to this time", "SEQ|TIME"),
                Option("limit", "at most this many", "N", number),
            ),
            examples=(
                "aetherscale events list --vm web",
                "aetherscale events list --since 1h",
                "aetherscale events list --after 100 --limit 20 --json",
            ),
            details="Reads the log of the state directory: no server is needed, and a running one is not disturbed.",
        ),
        Command(
            "tail",
            "events as they come; Ctrl-C ends it",
            _tail,
            reads="log",
            options=(
                Option("after", "begin after this number; without it, with what comes next", "SEQ", number),
                *_OF,
            ),
            examples=("aetherscale events tail", "aetherscale events tail --after 0 --json"),
            details="With --json each event is one line (JSON Lines).",
        ),
        Command(
            "show",
            "one event, complete",
            _show,
            reads="log",
            arguments=(Argument("SEQ", "the number of the event", number),),
            examples=("aetherscale events show 12",),
        ),
        Command(
            "catalogue",
            "every type of event, with its fields and what it means",
            _catalogue,
            examples=("aetherscale events catalogue", "aetherscale events catalogue --json"),
        ),
    ),
)
