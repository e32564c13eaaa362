"""What `vm console` does between a node and a terminal, with real pipes and without a node."""

from __future__ import annotations

import os
import signal
from collections import deque

import pytest

from aetherscale.gateways.cli import console
from aetherscale.gateways.cli.client import ANSWER_S
from aetherscale.gateways.cli.console import Ending, _Line, _Relay
from aetherscale.gateways.cli.failures import Failure


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


class Sized(Line):
    def __init__(self, *pieces: bytes, for_ever: bool = False) -> None:
        super().__init__(*pieces, for_ever=for_ever)
        self.sizes: list[os.terminal_size] = []

    def has_size(self, size: os.terminal_size) -> None:
        self.sizes.append(size)


def test_a_terminal_is_told_of_its_size_and_ends_with_stdin(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Sized(b"hello")
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((90, 30)))
    os.write(ends.typing, b"ls\x03")
    os.close(ends.typing)
    assert _Relay(line, b"\x1d", "", follows_size=True).run() == "left"  # type: ignore[arg-type]
    assert line.typed == b"ls\x03"
    assert line.sizes == [os.terminal_size((90, 30))]
    assert line.has_left


def test_each_other_size_of_the_window_is_told(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Sized(b"hello")
    sizes = [os.terminal_size(size) for size in ((80, 24), (90, 30), (100, 40))]
    now = iter(sizes)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: next(now))
    before = signal.getsignal(signal.SIGWINCH)
    carrying = _Relay(line, b"\x1d", "", follows_size=True)  # type: ignore[arg-type]
    assert carrying._turn() is None
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGWINCH)
        assert carrying._turn() is None
    assert line.sizes == sizes
    os.write(ends.typing, b"\x1d")
    assert carrying.run() == "left"
    assert signal.getsignal(signal.SIGWINCH) is before


def test_the_key_that_detaches_leaves_a_program_that_floods(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Sized(b"x" * 4096, for_ever=True)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((90, 30)))
    os.write(ends.typing, b"\x03\x1dnot typed")
    assert _Relay(line, b"\x1d", "", follows_size=True).run() == "left"  # type: ignore[arg-type]
    assert line.typed == b"\x03"
    assert line.has_left


def test_a_terminal_that_has_gone_has_no_size_and_leaves(ends: Ends) -> None:
    line = Sized(b"hello")
    os.close(ends.typing)
    assert _Relay(line, b"\x1d", "", follows_size=True).run() == "left"  # type: ignore[arg-type]
    assert line.sizes == [], "stdin is none here: asking it fails as one that has gone does"


def test_a_terminal_that_does_not_know_its_size_tells_none() -> None:
    assert console._sides(os.terminal_size((0, 24))) == console._sides(os.terminal_size((80, 0))) == {}
    assert console._sides(os.terminal_size((80, 24))) == {"rows": 24, "columns": 80}


def test_a_node_that_falls_silent_before_the_program_has_begun_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    class Node:
        """Says that it starts the program, and nothing more."""

        url = "nats://node"
        tenant = "default"
        state_dir = nats_url = None

        def __getattr__(self, name: str) -> Node:
            return self

        def new_token(self) -> str:
            return "token"

        def whole(self, options: dict[str, str]) -> dict[str, str]:
            return options

        def ask(self, subject: str, body: bytes) -> Node:
            return self

        def receive(self, timeout_s: float) -> dict[str, str] | None:
            waits.append(timeout_s)
            return {"type": "status", "status": "progress"} if len(waits) == 1 else None

    monkeypatch.setattr(console, "chunk_of", lambda message, parts: message)
    monkeypatch.setattr(console, "start", lambda settings: "aetherscale serve")
    with pytest.raises(Failure, match="no node answers"):
        _Line(Node(), "web", interactive=True, task="vm-terminal", what={"command": ["sh"]})  # type: ignore[arg-type]
    assert waits == [ANSWER_S, console.BEGIN_S]
