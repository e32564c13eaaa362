"""What the words of several kinds of objects share: a task that is told when it has ended, a list, and one object.

A kind is called as in its `Identity`: "image", "network".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import DONE, Failure, bad_usage, badness
from aetherscale.gateways.cli.views import show_table, show_to_human
from aetherscale.gateways.cli.wording import typed
from aetherscale.gateways.cli.work import carry_out, info, named, suggesting, taken, told_of


def carry_out_and_tell(
    context: Context, kind: str, task: str, options: Mapping[str, Any], *, subject: str, use: str, node: str = ""
) -> None:
    """Have a task done and say what became of its object; `use` begins the command that uses one that is ready.

    Raises `Failure`.
    """
    view = done(context, kind, task, options, subject=subject, node=node)
    if context.out.json:
        with taken(told_of(kind, view)):
            context.out.value(view)
        return
    if view["phase"] == "ready":
        context.suggest(f"next: aetherscale {use} {view['name']}")


def each_named(context: Context, kind: str, do: Callable[[str], Mapping[str, Any]]) -> int:
    """Work on each object that was named, one after the other; one that fails does not stop the others.

    Answers with the worst exit status. With --json one is an object, several are an array of those that went well.
    """
    names = list(dict.fromkeys(context.values["NAME"]))
    if len(names) == 1:
        view = do(names[0])
        if context.out.json:
            with taken(told_of(kind, view)):
                context.out.value(view)
        return DONE
    statuses, views = [DONE], []
    for name in names:
        try:
            views.append(do(name))
        except Failure as failure:
            alone = {**context.values, "NAME": [name]}
            context.out.failure(typed(failure, replace(context.parsed, values=alone)))
            statuses.append(failure.status)
            if failure.is_interrupt:
                break
    if context.out.json:
        with taken("; ".join(told_of(kind, view) for view in views) or f"no {named(kind).noun} has changed"):
            context.out.value(views)
    return max(statuses, key=badness)


def done(
    context: Context, kind: str, task: str, options: Mapping[str, Any], *, subject: str, node: str = "", meant: str = ""
) -> Mapping[str, Any]:
    """Have a task done and show what became of its object; answers with the view. Raises `Failure`.

    `meant` is the name that may be one of another kind that is not there; the subject, if not given.
    """
    with suggesting(context, kind, meant or subject):
        view, elapsed_s = carry_out(
            context, named(kind).component, task, options, subject=subject, kind=kind, node=node
        )
    if not context.out.json:
        with taken(told_of(kind, view)):
            context.out.line(f"{view['name']} ({view['id']}) is {view['phase']}, after {elapsed_s:.1f} s")
    return view


def labels(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Labels as they were typed. Raises `Failure` where one key has two values: none of them is the right one."""
    found = dict(given)
    for key, value in given:
        if found[key] != value:
            raise bad_usage(f"--label: {key!r} is given as {value!r} and as {found[key]!r}; a label has one value")
    return found


def list_objects(context: Context, kind: str, *, none: str, options: Mapping[str, Any] | None = None) -> None:
    """All objects of a kind; `none` says that there are none, and how to make one. Raises `Failure`."""
    names = named(kind)
    items = context.client.items(names.component, names.list_task, {"all": context.values["all"], **(options or {})})
    views = [item[kind] for item in items]
    if context.out.json:
        context.out.value(views)
    elif views:
        show_table(context.out, kind, views, context.program.now_us(), wide=context.values["wide"])
    else:
        context.suggest(none)


def show(context: Context, kind: str) -> None:
    """All that is known of the object `NAME`. Raises `Failure`."""
    view = info(context, kind, context.values["NAME"])
    if context.out.json:
        context.out.value(view)
    else:
        show_to_human(context.out, view, context.program.now_us())
