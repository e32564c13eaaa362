"""Writes docs/limits.md: every bound of aetherscale, what happens at it, and the tests that run into it.

    python -m tools.limits            write the page
    python -m tools.limits check      exit 1 where the page is not up to date, or something is missing or not there

The bounds are in tests/promises/limits.toml; their values are read from the code. A constant of the code that looks
like a bound has to be one there, or be named among those that are none.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from aetherscale.bus.refusals import CODES
from aetherscale.gateways.http.problems import TITLES
from aetherscale.kernel.errors import Reason
from tools.promises import ROOT, has_test

LIMITS: Final = ROOT / "tests/promises/limits.toml"
SOURCE: Final = ROOT / "src/aetherscale"
PAGE: Final = ROOT / "docs/limits.md"
LIKE_A_BOUND: Final = re.compile(r"_(S|BYTES|MIB|LIMIT|AT_ONCE|ATTEMPTS)$|(^|_)(MAX|MOST|WINDOW|LIMIT|TASKS)(_|$)")
NAMED_CODE: Final = re.compile(r"\((\d{3})\)")
KINDS: Final = {
    "input": "Input",
    "queue": "Queues",
    "wait": "Waits",
    "retry": "Retries",
    "file": "Files and storage",
}
HEAD: Final = """\
# Limits

<!-- Made by `just limits` from tests/promises/limits.toml and the code. Change those, not this page. -->

Every queue, wait, retry, file and input has a limit. This page lists each limit, where it is in the code, what happens
when it is reached, and the test that reaches it. The limits of a request's options are in [subjects.md](subjects.md).
"""


class Limit(Struct, frozen=True, forbid_unknown_fields=True):
    """One bound: `module:CONSTANT`, its kind, what it bounds and what happens there, and the tests that run into it."""

    name: str
    kind: Literal["input", "queue", "wait", "retry", "file"]
    says: str
    shown_by: list[str]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    limit: list[Limit]
    none: dict[str, list[str]]
    """Constants that are no bounds, by the reason."""


def main(arguments: Sequence[str]) -> int:
    """Do what the module's docstring says; the exit status."""
    limits, none = load()
    if list(arguments) != ["check"]:
        PAGE.write_text(page(limits))
    faults = list(faults_of(limits, none))
    if PAGE.read_text() != page(limits):
        faults.append("docs/limits.md is not up to date: run `just limits`")
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


def load() -> tuple[list[Limit], set[str]]:
    """The bounds in their order, and the names of what is none."""
    found = msgspec.convert(tomllib.loads(LIMITS.read_text()), _File)
    return found.limit, {name for names in found.none.values() for name in names}


def page(limits: Iterable[Limit]) -> str:
    """The whole of docs/limits.md."""
    lines = [HEAD]
    limits = list(limits)
    for kind, title in KINDS.items():
        lines += [f"## {title}\n", "| limit | where | what happens | shown by |", "| --- | --- | --- | --- |"]
        for limit in limits:
            if limit.kind == kind:
                shown = "<br>".join(f"`{name.removeprefix('tests/')}`" for name in limit.shown_by)
                where = limit.name.removeprefix("aetherscale.")
                lines.append(f"| {shown_value(limit.name)} | `{where}` | {limit.says} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def shown_value(name: str) -> str:
    """The value of a constant with its unit, which its name ends with."""
    module, _, constant = name.partition(":")
    value = getattr(importlib.import_module(module), constant)
    unit = constant.rpartition("_")[2]
    match unit:
        case "S":
            return f"{value:g} s"
        case "NS":
            return f"{value / 10**9:g} s"
        case "MIB":
            return f"{value:,} MiB"
        case "BYTES":
            for size, word in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
                if value >= size:
                    return f"{value / size:g} {word}"
            return f"{value:,} bytes"
        case _:
            return f"{value:,}"


def faults_of(limits: Iterable[Limit], none: set[str]) -> Iterator[str]:
    """What is named and is not there, and what looks like a bound and is not named."""
    named = {limit.name for limit in limits}
    constants = set(constants_of(SOURCE))
    for name in sorted((named | none) - constants):
        yield f"there is no constant {name}"
    for name in sorted(named & none):
        yield f"{name} is a bound, and is said to be none"
    for limit in limits:
        if not limit.shown_by:
            yield f"no test runs into {limit.name}"
        for test in limit.shown_by:
            if not has_test(test, ROOT):
                yield f"there is no test {test}, which should run into {limit.name}"
        sent = codes_at(SOURCE, limit.name.partition(":")[2])
        for code in NAMED_CODE.findall(limit.says):
            if int(code) not in sent:
                yield f"{limit.name} says ({code}), and the code that reads it sends {sorted(sent) or 'none'}"
    for name in sorted(constants - named - none):
        if LIKE_A_BOUND.search(name.partition(":")[2]):
            yield f"{name} looks like a bound: describe it in tests/promises/limits.toml, or say there why it is none"


@cache
def modules_of(source: Path) -> Mapping[Path, tuple[str, ast.Module]]:
    """The text of each module, in lower case, and what it parses to."""
    return {
        path: (text.lower(), ast.parse(text)) for path in sorted(source.rglob("*.py")) if (text := path.read_text())
    }


@cache
def codes_at(source: Path, constant: str) -> frozenset[int]:
    """The codes of the errors that are made in functions that read a constant, or what was set from it; else in their
    classes.
    """
    word = constant.strip("_").lower()
    trees = [tree for text, tree in modules_of(source).values() if word in text]
    return _codes_of(trees, word, ast.FunctionDef, ast.AsyncFunctionDef) or _codes_of(trees, word, ast.ClassDef)


def _codes_of(trees: Iterable[ast.AST], word: str, *scopes: type[ast.AST]) -> frozenset[int]:
    codes: set[int] = set()
    for part in (part for tree in trees for part in ast.walk(tree) if isinstance(part, scopes)):
        nodes = list(ast.walk(part))
        names = {node.id if isinstance(node, ast.Name) else getattr(node, "attr", "") for node in nodes}
        if word in {name.strip("_").lower() for name in names}:
            codes |= set(_codes_in(nodes))
    return frozenset(codes)


def _codes_in(nodes: Iterable[ast.AST]) -> Iterator[int]:
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            reason = node.args[0]
            if node.func.id == "HttpError" and isinstance(reason, ast.Constant):
                yield TITLES[str(reason.value)][0]
            if node.func.id != "Refused":
                continue
            if isinstance(reason, ast.Attribute) and isinstance(reason.value, ast.Name) and reason.value.id == "Reason":
                yield CODES[Reason[reason.attr]]


def constants_of(source: Path) -> Iterator[str]:
    """Every constant of the code, as `module:NAME`."""
    for path, (_, tree) in modules_of(source).items():
        module = ".".join(path.relative_to(source.parent).with_suffix("").parts).removesuffix(".__init__")
        for statement in tree.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
            for target in targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    yield f"{module}:{target.id}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
