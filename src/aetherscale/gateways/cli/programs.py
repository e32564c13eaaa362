"""`vm exec`: a program in a guest with this program's stdin, stdout and stderr.

    stdin ──▶ GuestProgram ──▶ a screen for stdout, one for stderr

Each screen is a thread, so that a slow reader holds up the guest and nothing here. Ctrl-C goes to the program; the
second one leaves, which hangs up on it.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from aetherscale.bus.bus import BusUnavailable
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import FAILED, NO_NODE, WAIT_RAN_OUT, Failure
from aetherscale.gateways.cli.guestprogram import PIECE_BYTES, GuestProgram, NotBegun, Output
from aetherscale.gateways.cli.output import Bytes
from aetherscale.gateways.cli.place import start
from aetherscale.gateways.cli.screen import Screen
from aetherscale.gateways.cli.standard import Unwritable
from aetherscale.gateways.cli.work import suggesting

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
GOES_S: Final = 5.0
"""How long to look whether a program that was hung up has ended: the most that `--timeout` is exceeded by."""
_LOOK_S: Final = 0.2

TIMED_OUT: Final = 124
"""The exit status where the time for a program was over and it was ended, as timeout(1) has it."""
HUNG_UP: Final = 129
"""The exit status of this program where it was hung up itself."""

Ending = Literal["ended", "left", "too late", "hung up"]


def run_with_streams(
    context: Context, reference: str, command: Sequence[str], *, reads_stdin: bool, timeout_s: float | None
) -> int:
    """Run a program in the guest until it ends; its exit status. Raises `Failure`, `BrokenPipeError`."""
    until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
    try:
        with suggesting(context, "vm", reference):
            program = GuestProgram(context, reference, command, has_input=reads_stdin, until_s=until_s)
        ending = _Exec(program, reads_stdin=reads_stdin, until_s=until_s).run()
    except NotBegun:
        raise Failure(
            504,
            f"{command[0]!r} had not begun within {timeout_s:g} s; if it begins later, it is ended (SIGHUP)",
            hint=f"does the VM answer? aetherscale vm show {reference}",
        ) from None
    except BusUnavailable as away:
        raise Failure(
            503, f"the connection to the node was lost: {away}", hint=start(context.settings), status=NO_NODE
        ) from None
    if ending == "ended":
        if program.exit_code is None:
            raise Failure(
                503,
                f"how {command[0]!r} ended is not known: the VM has ended, or its node does",
                hint=f"does the VM still run? aetherscale vm show {reference}",
            )
        return program.exit_code
    if ending == "hung up":
        return HUNG_UP
    why = f"had not ended within {timeout_s:g} s" if ending == "too late" else "was left before it had ended"
    goes_on = _goes_on(context, reference, program.pid)
    if goes_on is False:
        status = TIMED_OUT if ending == "too late" else FAILED
        raise Failure(504, f"{command[0]!r} {why}, and was ended (SIGHUP)", status=status)
    raise _left_behind(reference, command[0], program.pid, why, goes_on)


def _goes_on(context: Context, reference: str, pid: int) -> bool | None:
    """Whether a program that was hung up goes on all the same; None where the guest has told nothing in time."""
    until_s = time.monotonic() + GOES_S
    goes_on: bool | None = None
    try:
        while goes_on is not False and (left_s := until_s - time.monotonic()) > 0:
            look = {"vm-id": reference, "command": ["sh", "-c", f"kill -0 {pid}"], "timeout-s": left_s}
            goes_on = context.client.result("compute", "exec-vm", look, timeout_s=left_s)["exit-code"] == 0
            time.sleep(_LOOK_S if goes_on else 0)
    except (Failure, TimeoutError):
        return goes_on
    return goes_on


def _left_behind(reference: str, name: str, pid: int, why: str, goes_on: bool | None) -> Failure:
    does = "continues in spite of SIGHUP" if goes_on else "may continue"
    return Failure(
        504,
        f"{name!r} {why}; it {does} in the guest, as process {pid}",
        hint=f"to end it: aetherscale vm exec {reference} -- kill -9 {pid}",
        status=WAIT_RAN_OUT,
        details={"pid": pid},
    )


class _Exec:
    """Carries bytes both ways."""

    def __init__(self, program: GuestProgram, *, reads_stdin: bool, until_s: float) -> None:
        self._program = program
        self._reads = reads_stdin
        self._until_s = until_s
        self._screens = {False: Screen(STDOUT), True: Screen(STDERR)}
        self._filters = {is_error: Bytes(terminal=os.isatty(STDERR if is_error else STDOUT)) for is_error in (0, 1)}
        self._poll = select.poll()
        self._poll.register(program.fileno(), select.POLLIN)
        self._poll.register(STDOUT, 0)  # it is told unasked when nobody reads any more
        for screen in self._screens.values():
            self._poll.register(screen.fileno(), select.POLLIN)

    def run(self) -> Ending:
        """Until it has ended, or is left. Raises `BrokenPipeError`, `Unwritable`."""
        ending: Ending | None = None
        with _signals() as news:
            self._poll.register(news, select.POLLIN)
            try:
                while ending is None:
                    ending = self._turn(news)
            except Unwritable as lost:
                lost.done = "the request was taken all the same: the program has begun"
                raise
            finally:
                self._program.leave()
        return ending

    def _turn(self, news: int) -> Ending | None:
        now_s = time.monotonic()
        if now_s >= self._until_s:
            return "too late"
        events = dict(self._poll.poll(self._patience_ms(now_s)))
        self._screens[False].require_reader(events)
        if news in events and (left := self._left(news)) is not None:
            return left
        for screen in self._screens.values():
            self._program.took(screen.shown())
        if STDIN in events:
            self._give()
        self._listen_to_stdin()
        while (piece := self._program.heard()) is not None:
            self._show(piece)
        if self._program.has_ended:
            # What came last is shown whole.
            self._poll.modify(self._program.fileno(), 0)
            self._stop_reading()
            if self._screens[False].is_done() and self._screens[True].is_idle():
                return "ended"
        return None

    def _show(self, piece: Output) -> None:
        screen = self._screens[piece.is_error]
        if screen.failure is None:
            screen.show(self._filters[piece.is_error].shown(piece.data), len(piece.data))
        else:
            self._program.took(len(piece.data))  # what stderr does not take is lost

    def _patience_ms(self, now_s: float) -> float:
        return max(0.0, min(self._program.patience_s(), self._until_s - now_s)) * 1000

    def _listen_to_stdin(self) -> None:
        """Read stdin only where the program takes input, so that a guest that does not read holds up who writes."""
        if self._program.is_deaf:
            self._stop_reading()
        if self._reads and self._program.has_room():
            self._poll.register(STDIN, select.POLLIN)
        elif self._reads:
            self._unregister()

    def _give(self) -> None:
        try:
            data = os.read(STDIN, PIECE_BYTES)
        except OSError:
            data = b""  # the terminal has gone
        self._program.give(data)
        if not data:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reads:
            self._reads = False
            self._unregister()

    def _unregister(self) -> None:
        try:
            self._poll.unregister(STDIN)
        except KeyError:
            return  # it was not listened to

    def _left(self, news: int) -> Ending | None:
        """Pass a signal on; an end, where it is one to leave by."""
        for number in os.read(news, 64):
            if number == signal.SIGHUP:
                return "hung up"
            if self._has_passed_on:
                return "left"
            self._has_passed_on = True
            self._program.signal("INT" if number == signal.SIGINT else "TERM")
        return None

    _has_passed_on = False
    """Whether the program was sent a signal already."""


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor on which the numbers of signals come that would have ended this program."""
    news, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def hear(number: int, frame: object) -> None:
        os.write(tell, bytes([number]))

    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield news
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(news)
        os.close(tell)
