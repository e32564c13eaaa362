"""Writes PROMISES.md: what aetherscale promises, the tests that show it, how they ended last and when.

    python -m tools.promises run [WORD…]      run what shows the promises whose text has all words; write the page
    python -m tools.promises recipes [WORD…]  run only the recipes among those
    python -m tools.promises take JUNIT.xml…  take the results of test runs that were made anyway; write the page
    python -m tools.promises check            exit 1 where the page is not up to date, or names what is not there

The promises are in tests/promises/promises.toml, the results in results.json beside it. A promise is shown by tests
(a node id of pytest, without parameters: all of them have to pass; a file stands for all that is in it), and by
recipes of the justfile where a test of a few seconds cannot show it. Knows nothing of what is promised.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import msgspec
from msgspec import Struct

ROOT: Final = Path(__file__).parents[1]
PROMISES: Final = ROOT / "tests/promises/promises.toml"
RESULTS: Final = ROOT / "tests/promises/results.json"
PAGE: Final = ROOT / "PROMISES.md"
JUST: Final = "just "
HEAD: Final = """\
*For engineers who work on aetherscale.*

# Promises

<!-- Made by `just promises` from tests/promises/. Change those, not this page. -->

What aetherscale promises, which tests show it, and how they ended last. A promise counts only once a bug that breaks it
has been planted and caught: `just planted` plants them again. Where a test of a few seconds is not enough, a recipe is
named.
"""


class Promise(Struct, frozen=True, forbid_unknown_fields=True):
    """One promise: its group, its text, and what shows it (tests and `just …` recipes)."""

    group: str
    says: str
    shown_by: list[str]


class Result(Struct, frozen=True):
    """How a test or recipe ended last: `passed`, `failed` or `skipped`, on which day (UTC), and what a recipe said."""

    outcome: str
    day: str
    said: str = ""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    promise: list[Promise]


def main(arguments: Sequence[str]) -> int:
    """Do what the module's docstring says; the exit status."""
    promises = load(PROMISES)
    results = load_results(RESULTS)
    match list(arguments):
        case ["check"]:
            faults = list(missing(promises, ROOT))
            if PAGE.read_text() != page(promises, results):
                faults.append("PROMISES.md is not up to date: run `just promises`")
            print("\n".join(faults), file=sys.stderr)
            return 1 if faults else 0
        case ["run" | "recipes" as what, *words]:
            chosen = [each for each in promises if all(word.lower() in each.says.lower() for word in words)]
            names = dict.fromkeys(name for each in chosen for name in each.shown_by)
            results = {**results, **run(name for name in names if what == "run" or name.startswith(JUST))}
        case ["take", *files] if files:
            results = {**results, **taken(promises, [Path(each).read_text() for each in files], today())}
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    named = {name for each in promises for name in each.shown_by}
    results = {name: results[name] for name in sorted(results) if name in named}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    PAGE.write_text(page(promises, results))
    return 1 if any(results[name].outcome == "failed" for name in results) else 0


def load(path: Path) -> list[Promise]:
    """The promises in their order. Raises `msgspec.ValidationError` for what is none."""
    return msgspec.convert(tomllib.loads(path.read_text()), _File).promise


def load_results(path: Path) -> dict[str, Result]:
    """The results by the name of what was run; none where there is no file."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Result]) if path.exists() else {}


def today() -> str:
    """The day, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def page(promises: Iterable[Promise], results: Mapping[str, Result]) -> str:
    """The whole of PROMISES.md."""
    grouped: dict[str, list[Promise]] = {}
    for promise in promises:
        grouped.setdefault(promise.group, []).append(promise)
    lines = [HEAD]
    for at, (group, members) in enumerate(grouped.items()):
        lines += [""] if at else []
        lines += [f"## {group}\n", "| promise | shown by | last |", "| --- | --- | --- |"]
        for promise in members:
            shown = "<br>".join(f"`{_short(name)}`" for name in promise.shown_by)
            lines.append(f"| {promise.says} | {shown} | {_last([results.get(name) for name in promise.shown_by])} |")
    return "\n".join(lines) + "\n"


def _short(name: str) -> str:
    return name if name.startswith(JUST) else name.removeprefix("tests/")


def _last(results: Sequence[Result | None]) -> str:
    """The worst of the results, on the day of the oldest; what recipes said."""
    known = [each for each in results if each is not None]
    if len(known) < len(results):
        return "not run yet"
    worst = next(each for word in ("failed", "skipped", "passed") for each in known if each.outcome == word)
    said = "; ".join(each.said for each in known if each.said)
    return f"{worst.outcome} {min(each.day for each in known)}" + (f": {said}" if said else "")


def missing(promises: Iterable[Promise], root: Path) -> Iterator[str]:
    """What is named and is not there."""
    lines = (root / "justfile").read_text().splitlines()
    recipes = {line.split()[0].rstrip(":") for line in lines if line[:1].isalpha()}
    for promise in promises:
        if not promise.shown_by:
            yield f"nothing shows: {promise.says}"
        for name in promise.shown_by:
            if name.startswith(JUST):
                if name.removeprefix(JUST).split()[0] not in recipes:
                    yield f"there is no recipe `{name}`: {promise.says}"
            elif not has_test(name, root):
                yield f"there is no test {name}: {promise.says}"


def has_test(node_id: str, root: Path) -> bool:
    """Whether there is a test of this node id, or a file of tests."""
    path, *names = node_id.split("::")
    if not (root / path).is_file():
        return False
    body: list[ast.stmt] = ast.parse((root / path).read_text()).body
    for name in names:
        found = [
            statement
            for statement in body
            if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and statement.name == name
        ]
        if not found:
            # A state machine of hypothesis is a test case by assignment: `TestX = X.TestCase`.
            return any(isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name for each in body)
        body = found[0].body
    return True


def taken(promises: Iterable[Promise], reports: Iterable[str], day: str) -> dict[str, Result]:
    """The results of tests in reports of pytest (`--junitxml`); what was not run keeps the result that it had."""
    ended: dict[str, set[str]] = {}
    for report in reports:
        for case in ElementTree.fromstring(report).iter("testcase"):  # noqa: S314 - written by our own pytest
            outcomes = {child.tag for child in case}
            outcome = "failed" if outcomes & {"failure", "error"} else "skipped" if "skipped" in outcomes else "passed"
            function = f"{case.get('classname', '')}.{case.get('name', '').partition('[')[0]}"
            ended.setdefault(function, set()).add(outcome)
    results = {}
    for name in {name for promise in promises for name in promise.shown_by if not name.startswith(JUST)}:
        path, *names = name.split("::")
        dotted = ".".join([path.removesuffix(".py").replace("/", "."), *names])
        found = {
            outcome
            for function, outcomes in ended.items()
            if function == dotted or function.startswith(f"{dotted}.")
            for outcome in outcomes
        }
        if found:
            # One parameter that is skipped, as where a program is not installed, takes nothing from the others.
            results[name] = Result("failed" if "failed" in found else "passed" if "passed" in found else "skipped", day)
    return results


def run(names: Iterable[str]) -> dict[str, Result]:
    """Run tests and recipes; their results by name."""
    names = list(names)
    tests = [name for name in names if not name.startswith(JUST)]
    results: dict[str, Result] = {}
    if tests:
        with tempfile.TemporaryDirectory() as directory:
            report = Path(directory) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
            subprocess.run(command, cwd=ROOT, check=False)
            wanted = [Promise("", "", tests)]
            results |= taken(wanted, [report.read_text()], today())
            results |= {name: Result("failed", today()) for name in tests if name not in results}
    for name in names:
        if name.startswith(JUST):
            ended = subprocess.run(
                [str(ROOT / "justw"), *name.removeprefix(JUST).split()], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            print(ended.stdout)
            said = ([""] + [line.strip() for line in ended.stdout.splitlines() if line.strip()])[-1]
            outcome = "passed" if ended.returncode == 0 else "failed"
            results[name] = Result(outcome, today(), said[:160].replace("|", "/"))
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
