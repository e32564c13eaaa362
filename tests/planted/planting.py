"""Plants bugs into copies of the tree, one by one, and says which checks catch each.

    python -m tests.planted.planting [NAME…] [--jobs N] [--list]

`bugs.toml` has the bugs: what to find in which file, what to write there, and the checks that have to go red, each a
test of pytest (a node id; a file stands for all that is in it) or a recipe (`just sim --seed 3`). Each check is run
without the bug first, where it has to be green. The tree itself is never touched: what git knows of it, with what has
been changed since, is copied. A test that cannot even be run is no catch.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

ROOT: Final = Path(__file__).parents[2]
BUGS: Final = Path(__file__).with_name("bugs.toml")
JUST: Final = "just "
CHECK_LIMIT_S: Final = 300.0
HANG_S: Final = 45.0
"""A test that takes so long with a bug is red too, where its check takes less than a third of that without."""
RED: Final = 1
"""The status with which pytest says that tests have failed, and a recipe that it has found something."""

Colour = Literal["green", "red", "broken"]


class Edit(Struct, frozen=True):
    """What to find in a file, exactly once, and what to write in its place."""

    file: str
    find: str
    write: str


class Bug(Struct, frozen=True):
    """A bug, what goes wrong with it in one sentence, and what has to see that."""

    name: str
    says: str
    caught_by: tuple[str, ...]
    edit: tuple[Edit, ...]


class Ended(Struct, frozen=True):
    """How a check has ended, and the last that it said."""

    colour: Colour
    seconds: float
    said: str


def load(path: Path = BUGS) -> list[Bug]:
    """The bugs of a file."""
    return msgspec.convert(tomllib.loads(path.read_text())["bug"], type=list[Bug])


def faults(bug: Bug, root: Path) -> Iterator[str]:
    """Why a bug can no longer be planted in a tree."""
    for edit in bug.edit:
        path = root / edit.file
        text = path.read_text() if path.is_file() else ""
        if (count := text.count(edit.find)) != 1:
            yield f"{bug.name}: {edit.file} has {count} times, expected once: {edit.find.strip().splitlines()[0]!r}"
        elif path.suffix == ".py":
            try:
                ast.parse(text.replace(edit.find, edit.write))
            except SyntaxError as wrong:
                yield f"{bug.name}: {edit.file} would be no Python any more: {wrong}"


def copy_tree(root: Path, copy: Path) -> None:
    """What git knows of a tree, as it is now, with the tools that it is run by."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((root / name).read_bytes())
            (copy / name).chmod((root / name).stat().st_mode)
    (copy / ".venv").symlink_to(Path(sys.prefix))


def plant(bug: Bug, copy: Path) -> None:
    """Put a bug into a copy of the tree. Raises ValueError where it does not fit any more."""
    if wrong := list(faults(bug, copy)):
        raise ValueError("; ".join(wrong))
    for edit in bug.edit:
        path = copy / edit.file
        path.write_text(path.read_text().replace(edit.find, edit.write))


def run(check: str, tree: Path, hang_s: float = CHECK_LIMIT_S) -> Ended:
    """Run one check in a copy of the tree, each test of it for so long."""
    python = str(tree / ".venv/bin/python")
    if check.startswith(JUST):
        command = [str(tree / ".venv/bin/just"), "--justfile", str(tree / "justfile"), *check.split()[1:]]
    else:
        cache = ROOT / ".pytest_cache"  # what tests have downloaded is kept there
        command = [python, "-m", "pytest", "-q", "-x", f"--timeout={hang_s:g}", "-o", f"cache_dir={cache}", check]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    begun = time.monotonic()
    try:
        ended = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=CHECK_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Ended("red", CHECK_LIMIT_S, f"has not ended within {CHECK_LIMIT_S:g} s")
    lines = (ended.stdout + ended.stderr).strip().splitlines()
    colour: Colour = "green" if ended.returncode == 0 else "red" if ended.returncode == RED else "broken"
    return Ended(colour, time.monotonic() - begun, "\n".join(lines[-12:]))


def try_bug(bug: Bug, without: Mapping[str, Ended]) -> dict[str, Ended]:
    """What becomes of a bug's checks with it, by what became of them without."""
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        tree = Path(directory)
        copy_tree(ROOT, tree)
        plant(bug, tree)
        return {check: run(check, tree, max(HANG_S, 3 * without[check].seconds)) for check in bug.caught_by}


def try_without(checks: Sequence[str]) -> dict[str, Ended]:
    """What becomes of checks without any bug."""
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        copy_tree(ROOT, Path(directory))
        return {check: run(check, Path(directory)) for check in checks}


def report(bug: Bug, without: Mapping[str, Ended], planted: Mapping[str, Ended]) -> tuple[bool, str]:
    """Whether all of a bug's checks caught it, and a line for each."""
    lines = []
    caught = True
    for number, check in enumerate(bug.caught_by):
        before, after = without[check], planted[check]
        if before.colour != "green":
            what = f"NOT GREEN without the bug:\n{before.said}"
        elif after.colour == "green":
            what = "SURVIVED"
        elif after.colour == "broken":
            what = f"COULD NOT BE RUN:\n{after.said}"
        else:
            what = "caught"
        caught &= what == "caught"
        name = bug.name if number == 0 else ""
        lines.append(f"{name:32}{after.seconds:6.1f} s  {check.removeprefix('tests/')}  {what}")
    return caught, "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Of the command line: 0 where every bug was caught by every check that it names."""
    parser = argparse.ArgumentParser(prog="planted", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs; all where none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="only say which there are")
    given = parser.parse_args(arguments)
    bugs = [bug for bug in load() if not given.names or bug.name in given.names]
    if unknown := set(given.names) - {bug.name for bug in bugs}:
        parser.error(f"there is no bug {', '.join(sorted(unknown))}")
    if given.list:
        for bug in bugs:
            print(f"{bug.name:32}{bug.says}")
        return 0
    if unfit := [fault for bug in bugs for fault in faults(bug, ROOT)]:
        print("\n".join(unfit))
        return 1
    checks = list(dict.fromkeys(check for bug in bugs for check in bug.caught_by))
    survived = []
    with ThreadPoolExecutor(given.jobs) as jobs:
        shares = [checks[first :: given.jobs] for first in range(given.jobs)]
        without = {check: ended for share in jobs.map(try_without, shares) for check, ended in share.items()}
        for bug, planted in zip(bugs, jobs.map(try_bug, bugs, repeat(without)), strict=True):
            caught, lines = report(bug, without, planted)
            print(lines, flush=True)
            if not caught:
                survived.append(bug.name)
    print(
        f"{len(bugs)} bugs planted, {len(bugs) - len(survived)} caught"
        + (f"; not: {', '.join(survived)}" * bool(survived))
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
