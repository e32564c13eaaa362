"""Runs mutants in forked children of one pytest, which has collected every test once."""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Final, Literal, TypeVar

import coverage
import pytest

from tests.mutants.mutations import Mutant

SOURCE: Final = Path(__file__).parents[2] / "src"
KILLED: Final = 3
SURVIVED: Final = 0
IMPOSSIBLE: Final = 4
SLACK_S: Final = 20.0
"""What a mutant may take beside ten times what its tests take without it; what goes on for longer is killed."""

T = TypeVar("T")

Ended = Literal["killed", "survived", "unseen", "impossible"]


class Mutants:
    """A plugin of pytest that runs mutants instead of the tests once."""

    def __init__(self, mutants: Sequence[Mutant], jobs: int) -> None:
        self._mutants = mutants
        self._jobs = jobs
        self._dies_at_red = False
        self._failed = 0
        self.ended: list[tuple[Mutant, Ended]] = []
        """How each mutant ended; `unseen` by any test at all."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A red test kills the mutant, and with it this child."""
        if report.failed:
            self._failed += 1
            if self._dies_at_red:
                os._exit(KILLED)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Measure what each test runs, then fork a child for each mutant."""
        files = sorted({str(mutant.path) for mutant in self._mutants})
        took_s, seen_by, red = _in_child(lambda: self._measure(session.items, files))
        if red:
            pytest.exit(f"{red} tests fail without any mutant", returncode=2)
        alive = _alive(files)
        plan = {id(mutant): self._tests(mutant, seen_by, took_s) for mutant in self._mutants}
        waiting = [mutant for mutant in self._mutants if plan[id(mutant)]]
        self.ended = [(mutant, "unseen") for mutant in self._mutants if not plan[id(mutant)]]
        running: dict[int, tuple[Mutant, int, float]] = {}
        with selectors.DefaultSelector() as ends:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    mutant = waiting.pop()
                    numbers = plan[id(mutant)]
                    pid = self._fork(mutant, [session.items[number] for number in numbers], alive[str(mutant.path)])
                    limit_s = SLACK_S + 10 * sum(took_s[number] for number in numbers)
                    pidfd = os.pidfd_open(pid)
                    running[pidfd] = (mutant, pid, time.monotonic() + limit_s)
                    ends.register(pidfd, selectors.EVENT_READ)
                ends.select(timeout=1.0)
                for pidfd, (mutant, pid, until_s) in list(running.items()):
                    late = time.monotonic() > until_s
                    if late:
                        os.kill(pid, signal.SIGKILL)
                    done, status = os.waitpid(pid, 0 if late else os.WNOHANG)
                    if done:
                        ends.unregister(pidfd)
                        os.close(pidfd)
                        del running[pidfd]
                        self._note(mutant, status)
        return True

    def _note(self, mutant: Mutant, status: int) -> None:
        ended: Ended = "killed"
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == SURVIVED:
            ended = "survived"
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status) == IMPOSSIBLE:
            ended = "impossible"
        self.ended.append((mutant, ended))
        if len(self.ended) % 100 == 0:
            print(f"{len(self.ended)} of {len(self._mutants)} mutants", file=sys.stderr)

    def _measure(
        self, items: Sequence[pytest.Item], files: Sequence[str]
    ) -> tuple[list[float], dict[str, dict[int, list[int]]], int]:
        """How long each test takes; for each line of the files the tests that run it, by number; how many are red."""
        _fall_silent()
        took_s = []
        cover = coverage.Coverage(data_file=None, include=files, config_file=False)
        cover.start()
        for number, item in enumerate(items):
            cover.switch_context(str(number))
            start_s = time.monotonic()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=_next(items, number))
            took_s.append(time.monotonic() - start_s)
        cover.stop()
        data = cover.get_data()
        seen_by: dict[str, dict[int, list[int]]] = {}
        for name in files:
            lines = data.contexts_by_lineno(name)
            seen_by[name] = {line: [int(each) for each in found if each] for line, found in lines.items()}
        return took_s, seen_by, self._failed

    def _tests(self, mutant: Mutant, seen_by: dict[str, dict[int, list[int]]], took_s: Sequence[float]) -> list[int]:
        """The tests that run the mutated line, those that take least first."""
        found = seen_by[str(mutant.path)].get(mutant.line, [])
        return sorted(found, key=lambda number: took_s[number])

    def _fork(self, mutant: Mutant, items: Sequence[pytest.Item], alive: Sequence[FunctionType]) -> int:
        pid = os.fork()
        if pid:
            return pid
        self._dies_at_red = True
        _fall_silent()
        try:
            swap(mutant, alive)
        except ValueError:
            # A function that closes over other names cannot take the place of one that is alive.
            os._exit(IMPOSSIBLE)
        try:
            for number, item in enumerate(items):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=_next(items, number))
        except BaseException:  # noqa: BLE001  # whatever ends the child but a green test has seen the mutant
            os._exit(KILLED)
        os._exit(SURVIVED)


def swap(mutant: Mutant, alive: Sequence[FunctionType]) -> None:
    """Give the functions of the module that are alive in this process their mutated code.

    Raises ValueError where a mutated function closes over other names than the one that is alive.
    """
    mutated = dict(_functions(mutant.code))
    for function in alive:
        code = mutated.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
        if code is not None and code != function.__code__:
            function.__code__ = code


def _alive(files: Sequence[str]) -> dict[str, list[FunctionType]]:
    """Every function of the files. What is imported only where it is needed is imported now."""
    found: dict[str, list[FunctionType]] = {name: [] for name in files}
    for name in files:
        importlib.import_module(".".join(Path(name).relative_to(SOURCE).with_suffix("").parts))
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__code__.co_filename in found:
            found[each.__code__.co_filename].append(each)
    return found


def _functions(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield (each.co_qualname, each.co_firstlineno), each
            yield from _functions(each)


def _next(items: Sequence[pytest.Item], number: int) -> pytest.Item | None:
    return items[number + 1] if number + 1 < len(items) else None


def _fall_silent() -> None:
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)


def _in_child(work: Callable[[], T]) -> T:
    """What a call answers in a forked child, so that nothing of it stays here."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(work(), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer: T = pickle.load(pipe)  # noqa: S301  # our own child's
    os.waitpid(pid, 0)
    return answer
