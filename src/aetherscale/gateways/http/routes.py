"""The one table of routes, made from the components: router, OpenAPI, docs, rights and the fuzzing come from it.

    task                          route
    list-<plural>                 GET    /v1/<plural>
    <kind>-info                   GET    /v1/<plural>/{…}
    create-<kind>                 POST   /v1/<plural>
    <verb>-<kind>, creating       POST   /v1/<plural>/<verb>
    delete-<kind>                 DELETE /v1/<plural>/{…}
    any other command             POST   /v1/<plural>/{…}/actions   {"action": "<verb>", …}
    start-<kind> and stop-<kind>  PATCH  /v1/<plural>/{…}           {"status": "started"}
    (why)                         GET    /v1/<plural>/{…}/why
    <kind>-<noun>, a query        GET    /v1/<plural>/{…}/<noun>; POST where it does something in a guest
    any other query               GET    /v1/<component>/<noun>

A kind whose words on the command line have a first part, as `firewall group`, has it in its path:
`/v1/firewall/groups`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from aetherscale.bus.refusals import words_of
from aetherscale.components import components
from aetherscale.kernel.errors import Task
from aetherscale.kernel.wire import Message

if TYPE_CHECKING:
    from aetherscale.kernel.identity import Identity

Handler = Literal[
    "list", "show", "create", "delete", "act", "patch", "ask", "nodes", "node", "operation", "events", "openapi",
    "problem", "root", "metrics", "health", "readiness", "changes", "state", "diff", "density", "why",
]  # fmt: skip
"""What a route does; `handlers.py` has one function for each."""
Role = Literal["operator", "anyone"]
"""Who may. `operator`: on the Unix socket root, the node's own user and the group `aetherscale`; over TCP who has the
token. `anyone`: over TCP who has none, too."""

BASE: Final = "/v1"


class Route(Struct, frozen=True):
    """One row: a method on a template of paths."""

    name: str
    """No other row has it."""
    method: str
    template: str
    """`{vm}` stands for one segment."""
    handler: Handler
    about: str
    role: Role = "operator"
    kind: str = ""
    """Of the object that it is about; "" for none."""
    component: str = ""
    """The component under whose name the task is asked for."""
    task: str = ""
    options: type[Message] | None = None
    """Of the task; for `act` those of all tasks are in `actions`."""
    reference: str = ""
    """The field of the options that the path stands for."""
    actions: Mapping[str, tuple[str, str, type[Message]]] = {}
    """For `act` and `patch`: component, task and options, by the word in the body."""
    takes_body: bool = False
    streams: bool = False
    changes: bool = False
    """Whether it is a command, which takes a key and a condition, and has an operation."""

    @property
    def segments(self) -> tuple[str, ...]:
        """The template, part by part."""
        return tuple(self.template.strip("/").split("/"))

    @property
    def parameter(self) -> str:
        """The name of the part of the path that differs, "" for none."""
        return next((each[1:-1] for each in self.segments if each.startswith("{")), "")


@cache
def table() -> tuple[Route, ...]:
    """All rows."""
    return (*_of_components(), *_OF_THE_NODE)


@cache
def base_of(kind: str) -> str:
    """The path of all objects of a kind: `/v1/vms`."""
    identity = next(each.identity for each in components() if each.identity.kind == kind)
    return "/".join((BASE, *words_of(kind).split()[:-1], identity.plural))


_OF_THE_NODE: Final = (
    Route("nodes", "GET", f"{BASE}/nodes", "nodes", "The nodes: this one, in this version."),
    Route("node", "GET", f"{BASE}/nodes/{{node}}", "node", "What a node reports about itself."),
    Route(
        "operation",
        "GET",
        f"{BASE}/operations/{{operation}}",
        "operation",
        "What became of a command, for ever; `{operation}` is its key.",
    ),
    Route("events", "GET", f"{BASE}/events", "events", "Events as they happen, as server-sent events.", streams=True),
    Route(
        "changes",
        "GET",
        f"{BASE}/changes",
        "changes",
        "What each event changed, with its sentence, as server-sent events; with `until` a span of them as one value.",
        streams=True,
    ),
    Route("state", "GET", f"{BASE}/state", "state", "Everything as it was at a moment."),
    Route("diff", "GET", f"{BASE}/diff", "diff", "What changed between two moments."),
    Route("density", "GET", f"{BASE}/density", "density", "How many events were asked for, happened and failed, when."),
    Route("openapi", "GET", f"{BASE}/openapi.json", "openapi", "This table as OpenAPI 3.1."),
    Route("problem", "GET", "/problems/{problem}", "problem", "What a type of problem is, and what to do."),
    Route("metrics", "GET", "/metrics", "metrics", "Figures of the node and its VMs, as Prometheus reads them."),
    Route("health", "GET", "/healthz", "health", "Whether the node's loop answers.", "anyone"),
    Route("readiness", "GET", "/readyz", "readiness", "Whether the node takes commands; 503 with why not.", "anyone"),
    Route("root", "GET", BASE, "root", "Where everything is."),
)


def _of_components() -> Iterator[Route]:
    for component in components():
        identity = component.identity
        acting = dict(_acting(component))
        yield from _commands(component)
        if acting:
            yield _act(identity, acting)
        statuses = {word: acting[verb] for word, verb in _STATUSES.items() if verb in acting}
        if len(statuses) == len(_STATUSES):
            yield _patch(identity, statuses)
        yield from _reads(component)


_STATUSES: Final = {"started": "start", "stopped": "stop"}
"""The states that an object can be told to have, as in the first version, and the actions that bring it there."""


def _commands(component: Any) -> Iterator[Route]:
    identity, base = component.identity, base_of(component.identity.kind)
    for task, command in component.commands.items():
        verb = task.removesuffix(f"-{identity.kind}")
        common = {
            "kind": identity.kind, "component": component.asked_under(task), "task": task, "options": command.options,
            "changes": True,
        }  # fmt: skip
        if command.creates:
            path = base if verb == "create" else f"{base}/{verb}"
            about = f"{verb.capitalize()} {identity.one}."
            yield Route(task, "POST", path, "create", about, takes_body=True, **common)
        elif verb == "delete":
            about = f"Delete {identity.one}."
            path = f"{base}/{{{identity.kind}}}"
            yield Route(task, "DELETE", path, "delete", about, reference=identity.reference, **common)


def _acting(component: Any) -> Iterator[tuple[str, tuple[str, str, type[Message]]]]:
    """The actions on an object that is there, by the word in the body."""
    kind = component.identity.kind
    for task, command in component.commands.items():
        verb = task.removesuffix(f"-{kind}")
        if not command.creates and verb != "delete":
            yield verb, (component.asked_under(task), task, command.options)


def _act(identity: Identity, acting: Mapping[str, tuple[str, str, type[Message]]]) -> Route:
    return Route(
        f"{identity.kind}-actions",
        "POST",
        f"{base_of(identity.kind)}/{{{identity.kind}}}/actions",
        "act",
        f"Do something with {identity.one}: {', '.join(acting)}.",
        kind=identity.kind,
        reference=identity.reference,
        actions=acting,
        takes_body=True,
        changes=True,
    )


def _patch(identity: Identity, statuses: Mapping[str, tuple[str, str, type[Message]]]) -> Route:
    return Route(
        f"patch-{identity.kind}",
        "PATCH",
        f"{base_of(identity.kind)}/{{{identity.kind}}}",
        "patch",
        f"Say how {identity.one} is to be: {' or '.join(statuses)}.",
        kind=identity.kind,
        reference=identity.reference,
        actions=statuses,
        takes_body=True,
        changes=True,
    )


def _reads(component: Any) -> Iterator[Route]:
    identity, base = component.identity, base_of(component.identity.kind)
    kind, one = identity.kind, f"{base}/{{{identity.kind}}}"
    listing = component.listing
    yield Route(
        identity.list_task, "GET", base, "list", f"All {identity.noun}s, by name, page by page.",
        kind=kind, component=component.name, task=identity.list_task, options=listing.list_options,
    )  # fmt: skip
    yield Route(
        identity.show_task, "GET", one, "show",
        f"{identity.one.capitalize()}, or as it was at a moment: `?at=`.",
        kind=kind, component=component.name, task=identity.show_task, options=listing.show_options,
        reference=identity.reference,
    )  # fmt: skip
    yield Route(
        f"why-{kind}", "GET", f"{one}/why", "why", f"Why {identity.one} is, or was at a moment, as it is.", kind=kind,
        reference=identity.reference,
    )  # fmt: skip
    for task, query in component.queries.items():
        yield _query(component, task, query, base, one)


def _query(component: Any, task: str, query: Any, base: str, one: str) -> Route:
    kind, reference = component.identity.kind, component.identity.reference
    under = component.asked_under(task)
    method = "POST" if query.acts else "GET"
    if under == component.name and reference.replace("-", "_") in query.options.__struct_fields__:
        noun = task.removeprefix(f"{kind}-").removesuffix(f"-{kind}")
        path = f"{one}/{noun}"
    elif query.acts:
        path, reference = f"{base}/{task}", ""
    else:
        path, reference = f"{BASE}/{under}/{task.removeprefix('list-')}", ""
    return Route(
        f"ask-{task}", method, path, "ask", _first_line(query.options), kind=kind, component=under, task=task,
        options=query.options, reference=reference, takes_body=query.acts, streams=query.streams,
    )  # fmt: skip


def _first_line(options: type[Message]) -> str:
    return (options.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ").replace("    ", "")


def request_for(task: Task) -> dict[str, Any] | None:
    """The request that does a task of a remedy: method, path and body. None where HTTP has none for it."""
    for route in table():
        if route.kind != task.kind or not task.kind:
            continue
        path = route.template.replace(f"{{{task.kind}}}", task.of)
        match route.handler, task.verb:
            case ("list", "list") | ("show", "show") | ("delete", "delete"):
                return {"method": route.method, "path": path}
            case "act", verb if verb in route.actions:
                return {"method": route.method, "path": path, "body": {"action": verb, **task.options}}
            case "create", verb if route.task == f"{verb}-{task.kind}":
                body = {"name": task.of, **task.options} if task.of else dict(task.options)
                return {"method": route.method, "path": path, "body": body}
            case _:
                continue
    return None
