"""How refusals look to those who type: the numbers of the contract, and remedies as command lines that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale.bus import refusals
from aetherscale.components import identities
from aetherscale.gateways.cli import tree
from aetherscale.gateways.cli.grammar import Command
from aetherscale.gateways.cli.parse import parse
from aetherscale.kernel.errors import Reason, Refused, Remedy, Task

SOURCE = Path(refusals.__file__).parents[1]
WITHOUT_A_MEDIUM = ("kernel", "actors", "runtime", "debugger")
KINDS = "|".join(each.kind for each in identities())
TYPED = re.compile(rf"\baetherscale (?:{KINDS}|events|why|replay|diff|log|node (?:list|show))\b")
"""As in `aetherscale vm delete`: a task that has doors beside the terminal."""


@pytest.mark.parametrize(
    ("more", "details"),
    [
        ({}, {}),
        ({"field": "cpus"}, {"field": "cpus"}),
        ({"remedy": "take fewer"}, {"hint": "take fewer"}),
        (
            {"field": "cpus", "remedy": ("take fewer, or: ", Task("vm", "delete", "web")), "details": {"most": 4}},
            {"most": 4, "field": "cpus", "hint": "take fewer, or: aetherscale vm delete web"},
        ),
    ],
)
def test_an_error_tells_its_field_and_its_hint_in_its_details_where_it_has_them(
    more: dict[str, Any], details: dict[str, Any]
) -> None:
    assert refusals.error(Refused(Reason.BAD_REQUEST, "too many CPUs", **more)) == {
        "type": "error",
        "code": 400,
        "error": "bad-request",
        "message": "too many CPUs",
        "retryable": False,
        "details": details,
    }


def test_each_reason_has_a_number_of_its_own() -> None:
    assert set(refusals.CODES) == set(Reason)
    assert len(refusals.SLUGS) == len(Reason)


@pytest.mark.parametrize(
    ("remedy", "text"),
    [
        ((), ""),
        (("wait a moment",), "wait a moment"),
        ((Task("doctor"),), "aetherscale doctor"),
        ((Task("vm", "stop", "web", {"kill": True}),), "aetherscale vm stop web --kill"),
        ((Task("log", "verify", options={"witness": "/a b"}),), "aetherscale log verify --witness '/a b'"),
        ((Task("image", "list"), "; ", Task("why", "vm", "web")), "aetherscale image list; aetherscale why vm web"),
    ],
)
def test_a_remedy_is_words_and_command_lines_in_the_order_in_which_they_are_read(remedy: Remedy, text: str) -> None:
    assert refusals.hint(remedy) == text


def tasks() -> Iterator[Any]:
    """Each `Task(…)` of the source, with something typed for whatever is only known when it is raised."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Task":
                where = f"{path.relative_to(SOURCE)}:{node.lineno}"
                yield pytest.param(task_of(node), id=where)


def task_of(node: ast.Call) -> Task:
    given = dict(zip(("kind", "verb", "of", "options"), node.args, strict=False))
    given |= {word.arg: word.value for word in node.keywords if word.arg}
    options = given.pop("options", ast.Dict([], []))
    assert isinstance(options, ast.Dict), "the options of a task are spelled out"
    named = {literal(name): literal(value) for name, value in zip(options.keys, options.values, strict=True)}
    words = {name: literal(value, "x" if name == "of" else "vm") for name, value in given.items()}
    return Task(words["kind"], words.get("verb", ""), words.get("of", ""), named)


def literal(node: ast.expr | None, otherwise: str = "x") -> Any:
    return node.value if isinstance(node, ast.Constant) else otherwise


@pytest.mark.parametrize("task", list(tasks()))
def test_each_task_of_a_remedy_is_a_command_that_can_be_typed(task: Task) -> None:
    assert isinstance(parse(refusals.command_line(task).split()[1:], tree.ENTRIES).node, Command)


@pytest.mark.parametrize("kind", [each.kind for each in identities()])
def test_the_tasks_of_each_kind_are_below_its_words(kind: str) -> None:
    assert isinstance(parse([*refusals.words_of(kind).split(), "list"], tree.ENTRIES).node, Command)


def spoken(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The texts of a module but for its docstrings, and their lines."""
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value


@pytest.mark.parametrize("folder", WITHOUT_A_MEDIUM)
def test_no_command_line_is_written_where_the_medium_is_not_known(folder: str) -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path in sorted((SOURCE / folder).rglob("*.py"))
        if path.name != "needs.py"  # what `aetherscale doctor` finds, on the host's own terminal
        for line, text in spoken(ast.parse(path.read_text()))
        if TYPED.search(text)
    ]
    assert found == []
