"""`vm console`: this terminal as one reader and typist of a VM's serial line. `vm exec -t`: as that of a program.

    reply of the session ─▶ screen ──▶ stdout       stdin ──▶ console-input (no reply)
                               └─ what has been shown, and every 10 s "still here" ──▶ console-input

The node sends no more than a window beyond what has been shown, so that what is seen is what is, however fast the guest
writes; and stdout is written to by a thread, so that every key is heard at once. A terminal is put into raw mode, so
that every key goes to the guest but the one that leaves; it is put back whatever happens. What the guest asked a
terminal before this one was there is not shown to it: it would answer. Where stdin is no terminal, nobody would read
the answers, and no question is shown.
"""

from __future__ import annotations

import base64
import math
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal

import msgspec

from aetherscale.bus.bus import BusUnavailable, NoResponders
from aetherscale.bus.chunks import Reply
from aetherscale.gateways.cli.client import ANSWER_S, Chunk, chunk_of
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import NO_NODE, Failure
from aetherscale.gateways.cli.place import start
from aetherscale.gateways.cli.screen import Screen
from aetherscale.gateways.cli.terminalqueries import History
from aetherscale.gateways.cli.windowsize import Resized
from aetherscale.gateways.cli.work import suggesting
from aetherscale.kernel import subjects

STILL_HERE_S: Final = 10.0
CHUNK_BYTES: Final = 4096
BEGIN_S: Final = 90.0
"""How long a node may take to start a program: it gives up earlier, and says why."""
WINDOW_BYTES: Final = 32 * 1024
"""The bytes that the node may have sent and that have not been shown yet."""
QUIET_S: Final = 2.0
"""After the end of a stdin that is not a terminal, the answer is complete when the guest is silent for so long."""
ANSWERED_S: Final = 30.0
"""The same for a guest that never falls silent."""

STDIN: Final = 0
STDOUT: Final = 1

Ending = Literal["left", "ended", "silence", "answered"]


def attach(context: Context, reference: str, detach_key: bytes, tail_bytes: int | None) -> None:
    """Attach until the detach key, the end of the VM, or the end of a stdin that is no terminal. Raises `Failure`."""
    what = {} if tail_bytes is None else {"tail-bytes": tail_bytes}
    try:
        here = os.isatty(STDIN)
        with suggesting(context, "vm", reference):
            line = _Line(context, reference, interactive=here, what=what)
        leave = f"; {_shown(detach_key)} leaves" if here else ""
        context.out.note(f"attached to {reference} on {line.node}{leave}")
        again = f"\r\n[{reference}{leave}]\r\n" if here and os.isatty(STDOUT) else ""
        with _raw(here):
            ending = _Relay(line, detach_key if here else None, again).run()
    except BusUnavailable as away:
        raise Failure(
            503, f"the connection to the node was lost: {away}", hint=start(context.settings), status=NO_NODE
        ) from None
    if ending == "silence":
        raise Failure(
            504,
            f"{line.node} ended this session, since it had heard nothing of it; {reference} keeps running",
            hint=f"attach again: aetherscale vm console {reference}",
        )
    context.out.note(f"\n{reference} has ended" if ending == "ended" else f"\ndetached; {reference} keeps running")


def run_on_terminal(context: Context, reference: str, command: Sequence[str], detach_key: bytes) -> int:
    """Run a program in the guest on this terminal until it ends; its exit status.

    Raises `Failure`, also for the detach key, which hangs up on the program.
    """
    what = {"command": command, **_sides(os.get_terminal_size(STDIN)), **_kind()}
    ending: Ending = "ended"
    why = "its end was not told"
    try:
        with suggesting(context, "vm", reference):
            line = _Line(context, reference, interactive=True, task="vm-terminal", what=what)
        try:
            with _raw(terminal=True):
                ending = _Relay(line, detach_key, "", follows_size=True).run()
        except Failure as told:  # by the node, as where it stops
            why = told.message.partition(";")[0]
    except BusUnavailable as away:
        raise Failure(
            503, f"the connection to the node was lost: {away}", hint=start(context.settings), status=NO_NODE
        ) from None
    if line.exit_code is not None:
        return line.exit_code
    context.out.note("")  # the program may have left the cursor anywhere
    if ending == "left":
        raise Failure(409, f"left {command[0]!r} before it had ended; it was hung up")
    if ending == "silence":
        why = "its node had heard nothing of this session"
    raise Failure(
        503,
        f"{command[0]!r} has lost its terminal, and how it ended is not known: {why}",
        hint=f"does the VM still run? aetherscale vm show {reference}",
    )


def _sides(size: os.terminal_size) -> dict[str, int]:
    """As a node takes them; nothing where a terminal does not know its size, as on a serial line."""
    return {"rows": size.lines, "columns": size.columns} if size.lines and size.columns else {}


def _kind() -> dict[str, str]:
    """TERM, where it has a value that a guest may know."""
    term = os.environ.get("TERM", "")
    return {"term": term} if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}", term) else {}


class _Line:
    """The serial line of a VM, or a terminal in it, as one session of its node hears it and types into it."""

    def __init__(
        self,
        context: Context,
        reference: str,
        *,
        interactive: bool,
        task: str = "vm-console",
        what: Mapping[str, Any] | None = None,
    ) -> None:
        """Attach. Raises `Failure`, `BusUnavailable`."""
        self._tenant = context.settings.tenant
        self._session = context.program.new_token()
        self.connection = context.client.connection
        wanted = context.client.whole({"vm-id": reference})
        body = {**wanted, **(what or {}), "session": self._session, "window-bytes": WINDOW_BYTES}
        self._subject = subjects.command(self._tenant, "compute", task)
        self._reply = self.connection.ask(self._subject, msgspec.json.encode(body))
        self._parts = Reply(self._subject)
        try:
            chunk = self._next(ANSWER_S)
            if chunk is not None and chunk.get("status") == "progress":
                chunk = self._next(BEGIN_S)
        except NoResponders:
            chunk = None
        if chunk is None:
            message = f"no node answers on {self.connection.url}"
            raise Failure(503, message, hint=start(context.settings), status=NO_NODE)
        self.node = str(chunk["node"])
        self.history_bytes = int(chunk.get("history-bytes", 0))
        """How much of what is heard, from its beginning, was there before."""
        # Also where stdout is a pipe: at its end there may be a terminal all the same.
        self._history = History(self.history_bytes if interactive else sys.maxsize)
        self.ending: Ending | None = None
        """How the node said that it is over."""
        self.exit_code: int | None = None
        """Of a program that has ended, where the node knows it."""
        self._seen_bytes = 0

    def heard(self) -> tuple[bytes, int] | None:
        """One piece of what has come from the guest, as it is to be shown, and its length; None where none has."""
        while (chunk := self._next(0)) is not None:
            if chunk["type"] == "result":
                self.ending = "silence" if chunk.get("reason") == "silence" else "ended"
                self.exit_code = chunk.get("exit-code")
                return None
            if chunk["type"] == "item":
                data = base64.b64decode(chunk["data"])
                return self._history.feed(data), len(data)
        return None

    def has_more(self) -> bool:
        """Whether more has arrived than `heard` has reported."""
        return bool(self._reply.waiting)

    def type(self, data: bytes) -> None:
        """Type into the line; nothing at all says "still here"."""
        self._say({"data": base64.b64encode(data).decode()})

    def saw(self, count: int) -> None:
        """So much more has been shown: the node may send as much again."""
        self._seen_bytes += count
        self._say({"seen-bytes": self._seen_bytes})

    def has_size(self, size: os.terminal_size) -> None:
        """Our window has this size now."""
        if sides := _sides(size):
            self._say(sides)

    def leave(self) -> None:
        """Tell the node that this client has left. Where the connection is lost, its silence says so."""
        with suppress(BusUnavailable):
            self._say({"detach": True})
            self._reply.unsubscribe()
            self.connection.flush()

    def _say(self, what: Mapping[str, Any]) -> None:
        subject = subjects.node_command(self._tenant, self.node, "compute", "console-input")
        try:
            self.connection.publish(subject, msgspec.json.encode({"session": self._session, **what}))
        except BusUnavailable:
            if not self.has_more():  # what the node said before the connection was lost is heard first
                raise

    def _next(self, timeout_s: float) -> Chunk | None:
        message = self._reply.receive(timeout_s)
        return chunk_of(message, self._parts) if message is not None else None


class _Relay:
    """Carries bytes both ways."""

    def __init__(self, line: _Line, detach_key: bytes | None, again: str, *, follows_size: bool = False) -> None:
        self._line = line
        self._key = detach_key
        self._resized = Resized() if follows_size else None
        self._again = again.encode()
        """The notice that is shown again where the history ends, which has scrolled it away."""
        self._history_left = line.history_bytes
        self._screen = Screen(STDOUT)
        self._poll = select.poll()
        self._poll.register(line.connection.fileno(), select.POLLIN)
        self._poll.register(self._screen.fileno(), select.POLLIN)
        self._poll.register(STDIN, select.POLLIN)
        self._poll.register(STDOUT, 0)  # it is told unasked when nobody reads any more
        if self._resized is not None:
            self._poll.register(self._resized.fileno(), select.POLLIN)
        self._next_sign_s = time.monotonic() + STILL_HERE_S
        self._has_asked = False
        """Whether anything was typed, so that there may be an answer."""
        self._quiet_s: float | None = None
        self._last_s = math.inf

    def run(self) -> Ending:
        """Until one of the ends. Raises as `Screen.require_reader`."""
        ending: Ending | None = None
        try:
            while ending is None:
                ending = self._turn()
        finally:
            if ending == "left":
                self._screen.drop()
            if self._resized is not None:
                self._resized.close()
            self._line.leave()
        return ending

    def _turn(self) -> Ending | None:
        """Look at everything once; an end, where one has come."""
        events = dict(self._poll.poll(self._patience_ms()))
        self._screen.require_reader(events)
        if self._resized is not None and self._resized.is_new():
            with suppress(OSError):  # the terminal has gone, which is seen below
                self._line.has_size(os.get_terminal_size(STDIN))
        if STDIN in events and self._typed():
            return "left"
        if shown := self._screen.shown():
            self._line.saw(shown)
        if self._line.ending is None and (piece := self._line.heard()) is not None:
            self._show(*piece)
        now_s = time.monotonic()
        if now_s >= self._next_sign_s:
            self._line.type(b"")
            self._next_sign_s = now_s + STILL_HERE_S
        if self._line.ending is not None:
            # What came last is shown whole; the key that leaves is heard meanwhile.
            self._poll.modify(self._line.connection.fileno(), 0)
            return self._line.ending if self._screen.is_done() else None
        if self._quiet_s is not None and (now_s >= self._last_s or (now_s >= self._quiet_s and self._screen.is_done())):
            return "answered"
        return None

    def _patience_ms(self) -> float:
        if self._line.ending is None and self._line.has_more():
            return 0
        until_s = min(self._next_sign_s, self._last_s, math.inf if self._quiet_s is None else self._quiet_s)
        return max(0.0, until_s - time.monotonic()) * 1000

    def _show(self, data: bytes, length: int) -> None:
        if self._quiet_s is not None:
            self._quiet_s = time.monotonic() + QUIET_S
        if 0 < self._history_left <= length:
            data += self._again
        self._history_left -= length
        self._screen.show(data, length)

    def _typed(self) -> bool:
        """Take what was typed; whether it was the key that leaves."""
        try:
            typed = os.read(STDIN, CHUNK_BYTES)
        except OSError:
            typed = b""  # the terminal has gone
        if not typed:
            self._poll.unregister(STDIN)
            if self._key is not None:
                return True
            if self._has_asked:
                self._quiet_s, self._last_s = time.monotonic() + QUIET_S, time.monotonic() + ANSWERED_S
            return False
        before, key, _ = typed.partition(self._key) if self._key else (typed, b"", b"")
        if before:
            self._has_asked = True
            self._line.type(before)
        return bool(key)


@contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """Every key as it is typed, where there is a terminal; as it was again at the end, and while we are stopped."""
    if not terminal:
        yield
        return
    before = termios.tcgetattr(STDIN)

    def stop(number: int, _frame: object) -> None:
        """SIGTSTP: no key sends it, since ctrl-z goes to the guest, but other programs can."""
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # From here on we go on again.
        signal.signal(number, stop)
        tty.setraw(STDIN, termios.TCSADRAIN)

    handler = signal.signal(signal.SIGTSTP, stop)
    try:
        # What was typed since the line that says how to leave is kept.
        tty.setraw(STDIN, termios.TCSADRAIN)
        yield
    finally:
        # Not what the terminal still had to show, nor what it answered to it: the shell would take it for typed.
        with suppress(termios.error):
            termios.tcflush(STDIN, termios.TCIOFLUSH)
            termios.tcsetattr(STDIN, termios.TCSANOW, before)
        signal.signal(signal.SIGTSTP, handler)


def _shown(key: bytes) -> str:
    return f"ctrl-{chr(key[0] | 0x40).lower()}" if key[0] < 0x20 else key.decode()
