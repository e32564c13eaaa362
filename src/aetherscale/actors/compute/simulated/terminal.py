"""A program on a terminal in a simulated guest: a shell that knows a few words, or a program that ends at once."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable
from typing import Final

from aetherscale.actors.compute.driver import Window
from aetherscale.actors.compute.readers import Readers
from aetherscale.kernel.errors import Reason, Refused

_CTRL_C: Final = b"\x03"
_CTRL_D: Final = b"\x04"
_INTERRUPTED: Final = 130


class SimulatedTerminal:
    """It is a `Terminal`. `leave` is called once, when it is closed or has ended."""

    past_bytes = 0

    def __init__(self, window: Window, term: str, leave: Callable[[SimulatedTerminal], None]) -> None:
        self.exit_code: int | None = None
        self.window = window
        self._term = term
        self._leave = leave
        self._readers = Readers(self.send)
        self._reader = self._readers.attach(b"")
        self._typed = bytearray()
        self._sleeps = False
        self._status = 0
        self._is_over = False

    def output(self) -> AsyncIterator[bytes]:
        """The output of the program, until it has ended, the VM has, or `close` was called."""
        return self._reader.output()

    def run(self, code: int, printed: bytes) -> None:
        """A program that writes this and ends."""
        self._readers.feed(printed.replace(b"\n", b"\r\n"))
        self._end(code)

    def prompt(self) -> None:
        """The shell waits for a line."""
        self._readers.feed(b"sim:~# ")

    async def send(self, data: bytes) -> None:
        """Type. Raises `Refused` (conflict) where the program is gone."""
        if self._is_over:
            raise Refused(Reason.CONFLICT, "the program has ended")
        for byte in data:
            self._key(bytes([byte]))

    def _key(self, key: bytes) -> None:
        if self._is_over:
            return
        if key == _CTRL_C:
            self._readers.feed(b"^C\r\n")
            self._typed.clear()
            self._status, self._sleeps = _INTERRUPTED, False
            self.prompt()
        elif key == _CTRL_D and not self._typed and not self._sleeps:
            self._end(self._status)
        elif key == b"\r":
            line = self._typed.decode(errors="replace")
            self._typed.clear()
            self._readers.feed(b"\r\n")
            if not self._sleeps:
                self._line(line)
        else:
            self._typed += key
            self._readers.feed(key)

    def _line(self, line: str) -> None:
        for words in self._commands(line):
            if words[:1] == ["exit"]:
                self._end(int(words[1]) if len(words) > 1 else self._status)
                return
            self._command(words)
        if not self._sleeps:
            self.prompt()

    def _commands(self, line: str) -> list[list[str]]:
        """Its commands in words; none where a quote is not closed."""
        variables = line.replace("$?", str(self._status)).replace("$TERM", self._term)
        lexer = shlex.shlex(variables, posix=True, punctuation_chars=";")
        lexer.whitespace_split = True
        commands: list[list[str]] = [[]]
        try:
            for word in lexer:
                if word == ";":
                    commands.append([])
                else:
                    commands[-1].append(word)
        except ValueError:
            return []
        return commands

    def _command(self, words: list[str]) -> None:
        self._status = 0
        if words[:1] == ["echo"]:
            self._readers.feed(" ".join(words[1:]).encode() + b"\r\n")
        elif words == ["stty", "size"]:
            self._readers.feed(b"%d %d\r\n" % (self.window.rows, self.window.columns))
        elif words[:2] == ["sh", "-c"]:
            for inner in self._commands(words[2]):
                self._command(inner)
        elif "sleep" in words[:2]:  # or `exec sleep`
            self._sleeps = True
        elif words:
            self._status = 127

    def resize(self, window: Window) -> None:
        """The terminal has this size from now on."""
        self.window = window

    def _end(self, code: int | None) -> None:
        if not self._is_over:
            self._is_over = True
            self.exit_code = code
            self._readers.end()
            self._leave(self)

    def hang_up(self) -> None:
        """One of the two ends has gone."""
        self._end(None)

    async def close(self) -> None:
        """Hang up on a program that has not ended."""
        self.hang_up()
