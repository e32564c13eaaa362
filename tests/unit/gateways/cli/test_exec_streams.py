"""The streams of `vm exec`: output that nobody could be given is no success."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from aetherscale.gateways.cli import programs
from aetherscale.gateways.cli.guestprogram import GuestProgram, Output
from aetherscale.gateways.cli.screen import Screen
from aetherscale.gateways.cli.standard import Unwritable


class QuickScreen(Screen):
    """One whose thread has always written before the next thing happens."""

    def show(self, data: bytes, worth: int) -> None:
        super().show(data, worth)
        while not self.is_idle():
            time.sleep(0.001)


class Ended:
    """A program in a guest that has written a line and has ended, before anything of it was heard."""

    has_ended = False
    exit_code = 0
    is_deaf = False

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._output = [Output(b"x\n", is_error=False)]

    def fileno(self) -> int:
        return self._descriptor

    def patience_s(self) -> float:
        return 0.0

    def heard(self) -> Output | None:
        if self._output:
            return self._output.pop()
        self.has_ended = True
        return None

    def took(self, count: int) -> None:
        """Nobody sends more."""

    def leave(self) -> None:
        """It has ended."""


@pytest.fixture
def program() -> Iterator[GuestProgram]:
    reads, writes = os.pipe()
    yield cast("Any", Ended(reads))
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize(("flags", "failure"), [(os.O_RDONLY, Unwritable), (os.O_WRONLY, None)])
def test_output_that_stdout_did_not_take_is_told_also_where_it_was_the_last(
    program: GuestProgram, monkeypatch: pytest.MonkeyPatch, flags: int, failure: type[Exception] | None
) -> None:
    stdout = os.open(os.devnull, flags)
    monkeypatch.setattr(programs, "Screen", QuickScreen)
    monkeypatch.setattr(programs, "STDOUT", stdout)
    session = programs._Exec(program, reads_stdin=False, until_s=math.inf)
    try:
        if failure is None:
            assert session.run() == "ended"
        else:
            with pytest.raises(failure, match="Bad file descriptor"):
                session.run()
    finally:
        os.close(stdout)
