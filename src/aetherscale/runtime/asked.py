"""Under which names callers ask for tasks: a component's own, but for those that are asked for under another's."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from aetherscale.kernel.errors import Reason, Refused
from aetherscale.runtime.component import Component


def tasks_under(name: str, components: Iterable[Component[Any, Any]]) -> Mapping[str, Component[Any, Any]]:
    """The tasks that callers ask for under the name of a component, its own first, each with the one that has it."""
    found = [(task, each) for each in components for task in each.tasks() if each.asked_under(task) == name]
    return dict(sorted(found, key=lambda task: task[1].name != name))


def no_such_task(name: str, task: str, tasks: Iterable[str]) -> Refused:
    """The refusal of a task that is none of those that are asked for under a name."""
    known = tuple(tasks)
    near = difflib.get_close_matches(task, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
    return Refused(Reason.NOT_FOUND, f"{name} has no task {task!r}", remedy=hint, field="task")
