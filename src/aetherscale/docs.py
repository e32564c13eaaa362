"""Writes pages of docs/ from the code: `python -m aetherscale.docs [--check] [DIRECTORY]`.

All of events.md, states.md and subjects.md is made. Of cli.md the sections are that the grammar of the command line
says, of http.md the table of routes; those around them are written by hand. With `--check` nothing is written; the exit
status is 1 where a page is not what it would be.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale import statespage
from aetherscale.bus import answers, requests
from aetherscale.bus.refusals import SLUGS
from aetherscale.bus.refusals import error as error_chunk
from aetherscale.components import components, kinds
from aetherscale.debugger.events import catalogue, types_of
from aetherscale.debugger.fields import Field, fields_of, parts_of
from aetherscale.gateways.cli import reference
from aetherscale.gateways.cli.tree import ENTRIES
from aetherscale.gateways.http.routes import table
from aetherscale.kernel import subjects
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.messages import Event
from aetherscale.kernel.names import ID_RULE, IMAGE_NAME_RULE, NAME_RULE
from aetherscale.kernel.wire import MAX_BODY_BYTES, MAX_DEPTH
from aetherscale.runtime.asked import tasks_under
from aetherscale.runtime.component import Component

DOCS: Final = Path(__file__).parents[2] / "docs"
MADE: Final = "<!-- Made from the code by `just docs`. Change the code, not this page. -->"

ABOUT_ERRORS: Final = {
    400: ("the message is malformed, or a value is out of its range; `details.field` names it", "2"),
    403: ("the caller may not do this", "1"),
    404: ("no such object, task or component", "3"),
    409: ("the request does not fit the present state, or the key was used for another request", "1"),
    412: ("the object has changed since the caller saw it; only over HTTP, by `If-Match`", "1"),
    413: ("the message is too large", "2"),
    500: ("the host could not carry out the request, or the node made a mistake", "1"),
    501: ("this version does not have the feature", "1"),
    503: ("the node is stopping or busy, or no node listens", "4 where no node answered, else 1"),
    504: ("the time to wait ran out; `message` says whether the work goes on", "5, or 1 where it does not go on"),
    507: ("the disk is full; nothing was done", "1"),
}

SHORT_RULES: Final = {
    f"a name ({NAME_RULE}), or {ID_RULE}": "a [name or an id](#names-and-ids)",
    f"a name ({IMAGE_NAME_RULE}), or {ID_RULE}": "an [image's name or an id](#names-and-ids)",
    f"a name: {NAME_RULE}": "a [name](#names-and-ids)",
    f"a name: {IMAGE_NAME_RULE}": "an [image's name](#names-and-ids)",
}
"""Rules that the page has once, and what stands for them at each field."""

EVENTS_HEAD: Final = f"""\
# Events

{MADE}

All event types of a node's log. Events are immutable facts, and all state is computed from them. They are kept for
ever: a changed shape gets a new schema, and upcasters read the older ones.

As JSON (`aetherscale events list --json`) an event is

```json
{{"seq": 7, "stream": "vm-0123456789abcdef", "version": 3, "type": "VmBooted", "schema": 1, "time": "…Z",
 "node": "host1", "actor": "aether:compute", "command-id": "…", "correlation-id": "…", "causation-id": "…",
 "data": {{…}}}}
```

`seq` counts the events of the node, `version` those of the stream, both without a gap. `actor` is the caller, as in
[nats.md](nats.md), or `aether:<component>` for a report of the host or a policy. All events of one command share
`command-id`. `causation-id` is the id that the caller gave, or `<node>.<epoch>.<seq>` of the event whose effect led to
this one. `correlation-id` comes from the caller, and is passed on to all events that follow.

On JetStream (stream `AETHER_EVT_<node>`, at the same sequence) the body is a CloudEvent whose `type` is
`io.aetherscale.` and the type, and whose `data` is the same object. The last token of its subject is given below."""

SUBJECTS_HEAD: Final = (
    "# Subjects\n\n"
    + MADE
    + """

The subjects on which a node takes requests over NATS, and those on which it publishes. Bodies are JSON in kebab-case,
at most $body_kib KiB and $depth levels deep; an unknown field, a key that occurs twice or a value out of its range is
refused with an error that names the field.

| purpose | subject | queue | replies |
| --- | --- | --- | --- |
$addresses

`<tenant>` is `default` when alone. An `obj` subject takes an id; every field that names an object takes an id or a
name. A request without a reply subject is carried out all the same; its outcome is in the events.

## Names and ids

- A *name*: $name_rule.
- An *image's name*: $image_name_rule.
- An *id*: $id_rule.

## The first version's message

```json
{"component": "computing", "task": "create-vm", "response-channel": "unique-channel-123456789",
 "options": {"image": "tiny", "virtual-network": "lab"}}
```

It goes to the `rpc` subject; its replies come on the reply subject, if any, and on the response channel, which matches
`[A-Za-z0-9_-]{1,64}`.

A network that its `virtual-network` names and that does not exist is made on the way, of the kind `isolated`, and a
network that is being made is waited for. Of several requests for one name one makes the network. A request that is
refused for anything else makes none, and a repeat under its key makes none again. Elsewhere a missing network is
refused (404) with the command that makes it.

## Replies

A reply is a stream of JSON chunks: any number of `status` and `item`, then one `result` or `error`, then one empty
message without headers. The first chunk comes when the request is durable. A `status` of `working` says only that the
work goes on. What others ask of the same object meanwhile is told too, since the request waits for it; where another
request undoes what was asked for before it is there, the end is 409. Every chunk has the header `$node_header`.

```json
{"type": "status", "status": "allocating", "vm-id": "0123456789abcdef", "name": "web"}
{"type": "status", "status": "starting", "vm-id": "0123456789abcdef"}
{"type": "result", "vm-id": "0123456789abcdef", "vm": {…}}
```

A list is one `item` for each object, then a `result` with `count`. Where every node answers (`all`), each sends one
message, with its items in `items`.

An error has the headers `$error_header` and `$code_header`. Its message has the operation, the value that it got and
the one that it expected; `details.hint` says what to do:

```json
$error
```

| code | error | meaning | exit status |
| --- | --- | --- | --- |
$errors

## Headers of a request

- `$key`: the idempotency key, 1 to 128 printable ASCII characters, scoped to the tenant. A repeat of an accepted
  command has no second effect and gets its outcome; the same key with a body of other bytes is 409; a refused command
  is decided again.
- `$correlation`, `$causation`: kept with the events. Without a correlation id the trace id of `$trace` is taken, else
  the key.
- `$deadline`: milliseconds since 1970 UTC; a message that comes later is refused (504), and a caller who waits gets 504
  at that moment, while the work goes on.
- `$claimed`: the name that the caller gives itself, 1 to 64 letters, digits, `.`, `_`, `-`, `@` and `+`. The actor in
  the events is then `user:nats (says: NAME)`: the parentheses say that nothing proves the name. They are left out where
  it is known to be the caller's (`unix:NAME`, `nats:NAME`; see [nats.md](nats.md)). The command line sends the name of
  the Unix user, or with `--nats` that of the NATS user.
- `$timeout`: the same as a duration, in milliseconds from the arrival: better where clocks may differ."""
)


def main(arguments: Sequence[str]) -> int:
    """Write or check the pages; answers with the exit status."""
    check = "--check" in arguments
    places = [Path(each) for each in arguments if not each.startswith("-")]
    directory = places[0] if places else DOCS
    stale = 0
    for name, text in pages().items():
        path = directory / name
        if check and (not path.exists() or path.read_text() != text):
            print(f"{path} is not what the code says; `just docs` writes it anew", file=sys.stderr)
            stale += 1
        elif not check:
            path.write_text(text)
    return 1 if stale else 0


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    by_hand = (DOCS / "cli.md").read_text()
    return {
        "events.md": _page(_events()),
        "states.md": _page(statespage.lines(components(), MADE)),
        "subjects.md": _page(_subjects()),
        "cli.md": with_sections(by_hand, reference.sections(ENTRIES)),
        "http.md": with_sections((DOCS / "http.md").read_text(), {"Routes": list(_routes())}),
    }


def with_sections(page: str, sections: Mapping[str, Sequence[str]]) -> str:
    """A page with other lines in those of its sections (`## …`) whose headings are given. Each has to be there."""
    for heading, lines in sections.items():
        before, found, rest = page.partition(f"\n## {heading}\n")
        if not found:
            raise ValueError(f"the page has no section {heading!r}")
        _, _, after = rest.partition("\n## ")
        made = "\n".join(("", MADE, "", *lines, ""))
        page = f"{before}{found}{made}" + (f"\n## {after}" if after else "")
    return page


def described() -> list[type[Struct]]:
    """Every Struct whose fields the pages list."""
    events = [event for _, event in types_of(kinds())]
    tasks = [options for component in components() for options in component.tasks().values()]
    return list(_with_parts((*events, *tasks, *_views())))


def _page(lines: Iterable[str]) -> str:
    return "\n".join((*lines, ""))


def _events() -> Iterator[str]:
    yield EVENTS_HEAD
    kind = ""
    for event in catalogue(kinds()):
        if event.kind != kind:
            kind = event.kind
            yield from ("", f"## {kind}")
        yield from ("", f"### {event.type}", "", f"{event.about} Schema {event.schema}, token `{event.token}`.")
        yield from _fields(event.fields, options=False)
    yield from ("", "## Parts of events")
    for part in _with_parts(event for _, event in types_of(kinds())):
        if not issubclass(part, Event):
            yield from _struct(part)


def _subjects() -> Iterator[str]:
    yield Template(SUBJECTS_HEAD).substitute(
        body_kib=MAX_BODY_BYTES // 1024,
        depth=MAX_DEPTH,
        addresses="\n".join(f"| {' | '.join(row)} |" for row in _addresses()),
        name_rule=NAME_RULE,
        image_name_rule=IMAGE_NAME_RULE,
        id_rule=ID_RULE,
        node_header=answers.NODE,
        error_header=answers.ERROR,
        code_header=answers.ERROR_CODE,
        error=msgspec.json.encode(_an_error()).decode(),
        errors="\n".join(f"| {code} | `{slug}` | {_about_error(code)} |" for code, slug in SLUGS.items()),
        key=requests.KEY,
        correlation=requests.CORRELATION,
        causation=requests.CAUSATION,
        trace=requests.TRACEPARENT,
        deadline=requests.DEADLINE,
        timeout=requests.TIMEOUT,
        claimed=requests.CLAIMED,
    )
    for component in components():
        yield from tasks_of(component.name, components())
    yield from ("", "## Views")
    for struct in _with_parts(_views()):
        yield from _struct(struct)


def _routes() -> Iterator[str]:
    """The table of routes."""
    yield from ("| route | task | about |", "| --- | --- | --- |")
    for row in table():
        task = f"[{row.task}](subjects.md#{row.task})" if row.task else ""
        yield f"| `{row.method} {row.template}` | {task} | {row.about} |"


def _views() -> Iterator[type[Struct]]:
    """The views of all kinds."""
    for kind in kinds():
        yield typing.get_type_hints(kind.view)["return"]


def _with_parts(structs: Iterable[type[Struct]]) -> Iterable[type[Struct]]:
    """Structs, each followed by those that its fields consist of; each once."""
    return dict.fromkeys(each for struct in structs for each in (struct, *parts_of(struct)))


def _struct(struct: type[Struct]) -> Iterator[str]:
    yield from ("", f"### {struct.__name__}", "", _about(struct))
    yield from _fields(fields_of(struct), options=False)


def _addresses() -> Iterator[tuple[str, str, str, str]]:
    mine, queue = f"`{subjects.node_queue('<node>')}`", f"`{subjects.QUEUE}`"
    tenant, component, task = "<tenant>", "<component>", "<task>"
    rows = (
        ("any node takes it", subjects.command(tenant, component, task), queue, "stream"),
        ("one node", subjects.node_command(tenant, "<node>", component, task), mine, "stream"),
        ("one object: only its owner listens", subjects.object_command(tenant, "<kind>", "<id>", task), mine, "stream"),
        ("every node", subjects.all_command(tenant, component, task), mine, "one each"),
        ("the first version's message", subjects.rpc(tenant), queue, "stream"),
        ("its response channel", subjects.response_channel(tenant, "<channel>"), "–", "–"),
        ("events", subjects.event(tenant, "<node>", "<kind>", "<id>", "<event>"), "–", "–"),
        ("heartbeat, every 5 s", subjects.heartbeat("<node>"), "–", "–"),
        ("every node: what it reports", subjects.ask_nodes(), "–", "one each, as in its heartbeat"),
    )
    for purpose, subject, group, replies in rows:
        yield purpose, f"`{subject}`", group, replies


def _about_error(code: int) -> str:
    return " | ".join(ABOUT_ERRORS[code])


def tasks_of(name: str, components: Sequence[Component[Any, Any]]) -> Iterator[str]:
    """The section of the tasks that callers ask for under the name of one of these components."""
    yield from ("", f"## {name}")
    for task, component in tasks_under(name, components).items():
        changes = "changes something; takes an idempotency key" if task in component.commands else "changes nothing"
        yield from _task(name, task, component.tasks()[task], changes)


def _task(component: str, name: str, options: type[Struct], what: str) -> Iterator[str]:
    subject = subjects.command(subjects.DEFAULT_TENANT, component, name)
    yield from ("", f"### {name}", "", f"`{subject}`; {what}. {_about(options)}")
    yield from _fields(fields_of(options), options=True)


def _fields(fields: Sequence[Field], *, options: bool) -> Iterator[str]:
    if not fields:
        return
    head = "| field | type | default | about |" if options else "| field | type | about |"
    yield from ("", head, "| --- |" + " --- |" * (3 if options else 2))
    for field in fields:
        shape = field.type.replace("|", "\\|")
        default = "required" if field.required else f"`{msgspec.json.encode(field.default).decode()}`"
        about = field.about
        for rule, short in SHORT_RULES.items():
            about = about.replace(rule, short)
        yield f"| `{field.name}` | {shape} |{f' {default} |' if options else ''} {about} |"


def _about(struct: type[Struct]) -> str:
    return " ".join((struct.__doc__ or "").split())


def _an_error() -> Any:
    return error_chunk(Refused(Reason.NOT_FOUND, "no such VM: 'web'", field="vm-id", remedy=Task("vm", "list")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
