"""`events`: what is in the log, event by event, and what types of events there are."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from aetherscale.components import identities
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import Failure, meant
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.history import opened_log, position, tell_future
from aetherscale.gateways.cli.moments import local, local_with_zone, short_id
from aetherscale.gateways.cli.output import Layout
from aetherscale.gateways.cli.streams import read_by_somebody
from aetherscale.gateways.cli.values import number
from aetherscale.gateways.cli.views import WIDE, count, show_object
from aetherscale.kernel.messages import stream_name
from aetherscale.kernel.names import is_id
from aetherscale.kernel.reservations import RESERVATION_KIND
from aetherscale.kernel.times import to_rfc3339

if TYPE_CHECKING:
    from aetherscale.debugger.past import PastLog
    from aetherscale.kernel.messages import Recorded

HEADERS = ("SEQ", "TIME", "STREAM", "TYPE", "ACTOR", "DATA")
MOST_DATA = 72
LEAST_WIDTH = 40
DAY = len("2026-01-31")


def _list(context: Context) -> None:
    found = asyncio.run(_listed(context))
    if context.out.json:
        context.out.value(found)
        return
    values = context.values
    brief = context.out.terminal and not values["wide"]
    shown = found if not brief or values["all"] or values["type"] else [each for each in found if not _is_claim(each)]
    layout = Layout(spare=("ACTOR", "STREAM"), cut="DATA", wide=values["wide"])
    context.out.table(HEADERS, _rows(shown, brief, context.program.now_us()), layout=layout)
    if len(shown) < len(found):
        context.out.note(f"{count(len(found) - len(shown), 'reservation')} left out; --all shows them")


def _is_claim(event: Mapping[str, Any]) -> bool:
    return bool(event["stream"].startswith(f"{RESERVATION_KIND}-"))


def _rows(events: Sequence[Mapping[str, Any]], brief: bool, now_us: int) -> list[tuple[str, ...]]:
    """The rows of the table; in brief without the day, where all are of today."""
    today = local(to_rfc3339(now_us))[:DAY]
    all_today = brief and all(local(each["time"])[:DAY] == today for each in events)
    rows = [_row(each, brief) for each in events]
    return [(seq, time[DAY + 1 :] if all_today else time, *others) for seq, time, *others in rows]


def _tail(context: Context) -> None:
    with suppress(KeyboardInterrupt):  # it ends in no other way
        asyncio.run(read_by_somebody(_tailed(context)))


def _show(context: Context) -> None:
    event = asyncio.run(_one(context, context.values["SEQ"]))
    if context.out.json:
        context.out.value(event)
        return
    shown = {**event, "time": local_with_zone(event["time"])} if context.out.terminal else event
    show_object(context.out, shown)


def _catalogue(context: Context) -> None:
    from aetherscale.debugger.events import catalogue

    types = catalogue(context.program.kinds())
    if context.out.json:
        context.out.value(types)
        return
    for at, event in enumerate(types):
        context.out.line(f"{chr(10) if at else ''}{event.kind}: {event.type} (schema {event.schema}): {event.about}")
        for field in event.fields:
            context.out.line(f"    {field.name}: {field.type}. {field.about}")


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
        tell_future(context, since, "no event is that late")
    last = head if until is None else await position(context, log, until, "all events until now are shown")
    before = context.values["before"]
    return after, last if before is None else min(last, before - 1)


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
                    context.out.line(_tail_line(event, context.out.terminal and not context.values["wide"]))


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
        """The filter that the flags describe. Raises `Failure` for an object or a type that is not known."""
        from aetherscale.debugger.events import type_named

        streams = set()
        past = await log.state_at(head) if any(context.values[each.kind] for each in identities()) else None
        for kind in (each.kind for each in identities()):
            for reference in context.values[kind]:
                assert past is not None
                with meant(reference):
                    aggregate = past.find(kind, context.settings.tenant, reference)
                streams.add(stream_name(kind, aggregate.id))
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


def _tail_line(event: Mapping[str, Any], brief: bool) -> str:
    """One line, on a terminal no longer than that is wide."""
    text = "  ".join(_row(event, brief))
    width = max(shutil.get_terminal_size().columns, LEAST_WIDTH)
    return f"{text[: width - 1]}…" if brief and len(text) > width else text


def _row(event: Mapping[str, Any], brief: bool) -> tuple[str, ...]:
    kind, _, object_id = event["stream"].partition("-")
    # In brief without what the stream says already.
    left_out: tuple[object, ...] = (None, "", {}, object_id) if brief else (None, "", {})
    data = " ".join(f"{name}={_short(value)}" for name, value in event["data"].items() if value not in left_out)
    shown = data if len(data) <= MOST_DATA else f"{data[: MOST_DATA - 1]}…"
    if not brief:
        return (str(event["seq"]), event["time"], event["stream"], event["type"], event["actor"], shown)
    stream = f"{kind}-{short_id(object_id)}" if is_id(object_id) else event["stream"]
    return (str(event["seq"]), local(event["time"]), stream, event["type"], event["actor"], data)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if " " not in text and "\n" not in text else msgspec.json.encode(text).decode()


_OF = (
    *(
        Option(each.kind, f"only events of this {each.noun}, by name or id", "NAME", many=True, completes=each.kind)
        for each in identities()
    ),
    Option("type", "only events of this type, e.g. VmBooted or vm-booted", "TYPE", many=True),
)

EVENTS = Group(
    "events",
    "the events in the log",
    (
        Command(
            "list",
            "list the events in the log, oldest first",
            _list,
            reads="log",
            options=(
                Option("after", "only events after this number", "SEQ", number, default="0"),
                *_OF,
                Option("since", "only events from this event or time on: 5m, yesterday …", "SEQ|TIME"),
                Option("until", "only events up to this event or time", "SEQ|TIME"),
                Option("before", "only events before this number", "SEQ", number),
                Option("limit", "at most this many, oldest first", "N", number),
                Option("all", "also show reservations of names and addresses, which a terminal's table leaves out"),
                WIDE,
            ),
            examples=(
                "aetherscale events list --vm web",
                "aetherscale events list --since 1h",
                "aetherscale events list --after 100 --limit 20 --json",
            ),
            details="Reads the log in the state directory. It works with and without a running node.",
        ),
        Command(
            "tail",
            "show events as they happen; Ctrl-C ends it",
            _tail,
            reads="log",
            options=(
                Option("after", "start after this number; if not given, only new events are shown", "SEQ", number),
                *_OF,
                WIDE,
            ),
            examples=("aetherscale events tail", "aetherscale events tail --after 0 --json"),
            details="With --json each event is one line (JSON Lines).",
        ),
        Command(
            "show",
            "show one event with all its fields",
            _show,
            reads="log",
            arguments=(Argument("SEQ", "the number of the event", number),),
            examples=("aetherscale events show 12",),
        ),
        Command(
            "catalogue",
            "list all event types, with their fields and meaning",
            _catalogue,
            examples=("aetherscale events catalogue", "aetherscale events catalogue --json"),
        ),
    ),
)
