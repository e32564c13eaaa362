"""Which process is which, asked of processes of this test's own."""

from __future__ import annotations

import os
import re
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale.processes.identity import (
    arguments_of,
    has_ended,
    open_verified,
    processes_below,
    processes_with,
    start_ticks,
)

MARK = f"aether-test-{os.getpid()}"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = ["sh", "-c", "echo; read -r _", MARK, "an argument\n", ""]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        yield process
        process.kill()


def opened(pid: int, ticks: int | None, directory: Path | None, word: str) -> bool:
    assert ticks is not None
    pidfd = open_verified(pid, ticks, directory, word)
    if pidfd is not None:
        os.close(pidfd)
    return pidfd is not None


def test_one_is_known_by_start_place_and_word(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    ticks = start_ticks(child.pid)
    assert ticks is not None
    assert opened(child.pid, ticks, tmp_path, MARK)
    assert opened(child.pid, ticks, None, MARK), "one that left its place is known by the rest"
    assert not opened(child.pid, ticks + 1, None, MARK)
    assert not opened(child.pid, ticks, tmp_path.parent, MARK)
    assert not opened(child.pid, ticks, None, MARK[:-1])
    for pid in (0, 1, -1, 1 << 40):
        assert not opened(pid, ticks, None, MARK)


def test_arguments_are_told_apart(child: subprocess.Popen[bytes]) -> None:
    assert arguments_of(child.pid)[-3:] == [MARK, "an argument\n", ""]
    assert arguments_of(1 << 22) == []


def test_one_is_found_by_the_form_of_a_word_or_by_its_place(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    form = re.compile(r"aether-(?P<what>test)-" + str(os.getpid()))
    assert [(match["what"], pid) for match, pid in processes_with(form)] == [("test", child.pid)]
    assert processes_with(re.compile("aether-test")) == []
    assert processes_below(tmp_path.parent, lambda _: MARK) == [(tmp_path.name, child.pid)]
    assert processes_below(tmp_path.parent, lambda name: name) == []


def test_one_that_was_not_waited_for_has_ended(child: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(child.pid)
    assert not has_ended(child.pid)
    child.kill()
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    assert has_ended(child.pid)
    assert arguments_of(child.pid) == []
    child.wait()
    assert has_ended(child.pid)
    assert start_ticks(child.pid) is None
