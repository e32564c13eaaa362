"""The program's own pipes: a stdin that is read whole, and a stdout whose reader may go."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

from aetherscale.gateways.cli.failures import Failure, bad_usage

STDIN: Final = 0
STDOUT: Final = 1
PIECE_BYTES: Final = 64 * 1024
FIRST_WORD_S: Final = 2.0
"""How soon a stdin that was not asked for has to bring something, or end."""


def stdin_is_a_terminal() -> bool:
    """Whether stdin is a terminal."""
    try:
        return os.isatty(STDIN)
    except OSError:
        return False


def whole_stdin(limit_bytes: int, timeout_s: float, *, asked_for: bool) -> bytes | None:
    """The content of stdin, to its end.

    Unless it was asked for, a terminal gives nothing, and one that neither says anything nor ends for a while is left
    alone, and None comes: many programs start others with a stdin that is never written to. Raises `Failure` where
    there is more than `limit_bytes`, or where it does not end in time.
    """
    if os.isatty(STDIN) and not asked_for:
        return b""
    found = bytearray()
    until_s = time.monotonic() + timeout_s
    first_s = until_s if asked_for else min(until_s, time.monotonic() + FIRST_WORD_S)
    while True:
        patience_s = (until_s if found else first_s) - time.monotonic()
        ready, _, _ = select.select([STDIN], (), (), max(0.0, patience_s))
        if not ready and not found and not asked_for:
            return None
        if not ready:
            raise Failure(
                504,
                f"stdin has not ended within {timeout_s:g} s, and a program gets it whole",
                hint="a program that needs none: < /dev/null; or a longer --timeout",
            )
        piece = os.read(STDIN, PIECE_BYTES)
        if not piece:
            return bytes(found)
        found += piece
        if len(found) > limit_bytes:
            raise bad_usage(
                f"stdin: got more than {limit_bytes} bytes, expected at most so many",
                "let the program fetch what it needs, as with wget",
            )


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Raise `BrokenPipeError` as soon as stdout has no reader any more, also while nothing is written to it."""
    main = threading.main_thread().ident
    assert main is not None, "there is a main thread"
    before = signal.signal(signal.SIGPIPE, _nobody_reads)
    try:
        # From the end of the watch on a late signal is as good as none.
        with _watch(lambda: signal.pthread_kill(main, signal.SIGPIPE), lambda: signal.signal(signal.SIGPIPE, before)):
            yield
    except _Unread:
        raise BrokenPipeError from None


async def read_by_somebody(work: Coroutine[Any, Any, None]) -> None:
    """Await the work; it is cancelled, and `BrokenPipeError` raised, as soon as stdout has no reader any more.

    In a loop, since a signal that raises there is lost in whichever callback it happens to interrupt.
    """
    import asyncio  # late: most commands need no loop, and start sooner without it

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    is_done = is_unread = False

    def end() -> None:
        nonlocal is_unread
        if not is_done:
            is_unread = task.cancel()

    try:
        with _watch(lambda: loop.call_soon_threadsafe(end)):
            await work
    except asyncio.CancelledError:
        if not is_unread:
            raise
        task.uncancel()
        raise BrokenPipeError from None
    finally:
        is_done = True


@contextmanager
def _watch(gone: Callable[[], object], last: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Call `gone`, in a thread of its own, once stdout has no reader any more, and `last` before the watch ends."""
    over, tell = os.pipe()

    def watch() -> None:
        poll = select.poll()
        poll.register(STDOUT, 0)
        poll.register(over, select.POLLIN)
        if any(descriptor == STDOUT for descriptor, _ in poll.poll()):
            gone()

    watcher = threading.Thread(target=watch, name="reader", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        last()
        os.close(tell)
        watcher.join()
        os.close(over)


class _Unread(Exception):
    """No OSError: code that waits for a connection would take it for the end of that."""


def _nobody_reads(number: int, frame: object) -> None:
    raise _Unread
