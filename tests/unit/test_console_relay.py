"""What `vm console` does between a node and a terminal, with real pipes and without a node."""

from __future__ import annotations

import os
from collections import deque

import pytest

from aetherscale.gateways.cli import console
from aetherscale.gateways.cli.console import Ending, _Relay


class Line:
    """A line whose node says these pieces and then falls silent, or never."""

    history_bytes = 0

    def __init__(self, *pieces: bytes, ends_as: Ending | None = None, for_ever: bool = False) -> None:
        self._news, self._tell = os.pipe()
        os.write(self._tell, b"!")
        self.pieces = deque(pieces)
        self.for_ever = for_ever
        self._ends_as = ends_as
        self.ending: Ending | None = None
        self.typed = b""
        self.signs = 0
        self.seen = 0
        self.has_left = False
        self.connection = self

    def fileno(self) -> int:
        return self._news

    def heard(self) -> tuple[bytes, int] | None:
        if not self.pieces:
            self.ending = self._ends_as
            return None
        piece = self.pieces[0] if self.for_ever else self.pieces.popleft()
        return piece, len(piece)

    def has_more(self) -> bool:
        return bool(self.pieces)

    def type(self, data: bytes) -> None:
        self.typed += data
        self.signs += not data

    def saw(self, count: int) -> None:
        self.seen += count

    def leave(self) -> None:
        self.has_left = True


class Ends:
    """The terminal's side: a pipe to type into, and one to read from."""

    def __init__(self) -> None:
        self.stdin, self.typing = os.pipe()
        self.reading, self.stdout = os.pipe()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    made = Ends()
    monkeypatch.setattr(console, "STDIN", made.stdin)
    monkeypatch.setattr(console, "STDOUT", made.stdout)
    monkeypatch.setattr(console, "QUIET_S", 0.05)
    return made


def relay(line: Line, key: bytes | None = b"\x1d", again: str = "") -> _Relay:
    return _Relay(line, key, again)  # type: ignore[arg-type]


def test_the_key_is_heard_while_the_terminal_takes_nothing_and_the_guest_never_stops(ends: Ends) -> None:
    line = Line(b"x" * 100_000, for_ever=True)
    os.write(ends.typing, b"ls\x1dnot this")
    assert relay(line).run() == "left"
    assert line.typed == b"ls"
    assert line.has_left


def test_every_other_key_goes_to_the_guest(ends: Ends) -> None:
    line = Line(b"x" * 100_000, for_ever=True)
    os.write(ends.typing, b"\x03")
    carrying = relay(line)
    while not line.typed:
        assert carrying._turn() is None
    assert line.typed == b"\x03"


def test_what_was_shown_is_told_and_the_last_of_a_vm_is_shown_whole(ends: Ends) -> None:
    line = Line(b"one ", b"two ", b"three", ends_as="ended")
    assert relay(line).run() == "ended"
    assert os.read(ends.reading, 100) == b"one two three"
    assert line.seen == 13


def test_a_session_that_the_node_ended_is_told_from_a_vm_that_has(ends: Ends) -> None:
    assert relay(Line(b"x", ends_as="silence")).run() == "silence"


def test_the_end_of_the_reader_is_seen_at_once(ends: Ends) -> None:
    line = Line()
    os.close(ends.reading)
    with pytest.raises(BrokenPipeError):
        relay(line).run()
    assert line.has_left


def test_the_end_of_a_stdin_that_is_no_terminal_waits_for_the_answer(ends: Ends) -> None:
    line = Line()
    os.write(ends.typing, b"uptime\n")
    os.close(ends.typing)
    carrying = relay(line, None)
    while not line.typed:
        assert carrying._turn() is None
    line.pieces.append(b"up 1 day")
    assert carrying.run() == "answered"
    assert line.typed == b"uptime\n"
    assert os.read(ends.reading, 100) == b"up 1 day"


def test_a_guest_that_never_falls_silent_is_left_in_time(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "ANSWERED_S", 0.05)
    monkeypatch.setattr(console, "QUIET_S", 3600)
    os.write(ends.typing, b"yes\n")
    os.close(ends.typing)
    assert relay(Line(b"x" * 1000, for_ever=True), None).run() == "answered"


def test_who_types_nothing_at_all_only_reads(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "ANSWERED_S", 0.0)
    monkeypatch.setattr(console, "QUIET_S", 0.0)
    os.close(ends.typing)
    line = Line(*[b"x"] * 100, ends_as="ended")
    assert relay(line, None).run() == "ended"
    assert line.seen == 100


def test_the_end_of_a_terminal_leaves(ends: Ends) -> None:
    os.close(ends.typing)
    assert relay(Line()).run() == "left"


def test_the_key_is_shown_again_where_the_history_ends(ends: Ends) -> None:
    line = Line(b"past", b"-now", b"-then", ends_as="ended")
    line.history_bytes = 6
    assert relay(line, again="[ctrl-] leaves]").run() == "ended"
    assert os.read(ends.reading, 100) == b"past-now[ctrl-] leaves]-then"
    assert line.seen == 13


def test_a_sign_of_life_goes_out_while_the_guest_floods(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "STILL_HERE_S", 0.0)
    line = Line(b"x" * 100_000, for_ever=True)
    carrying = relay(line)
    for _ in range(10):
        assert carrying._turn() is None
    assert line.signs == 10
