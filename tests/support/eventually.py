"""Waiting for something that changes in this process, or in a program that tells nobody of its changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 120.0
"""Bounds a hang, also where the machine is emulated and busy: there a program of Python takes many seconds to start."""


class Told(list[str]):
    """A list that can be waited for: `Told().append` is what somebody is given to tell through."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def append(self, line: str) -> None:
        super().append(line)
        self._more.set()

    async def until(self, holds: Callable[[list[str]], bool]) -> None:
        """Wait until what was told is enough; looks again each time that something is."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds(self):
                self._more.clear()
                await self._more.wait()


@contextmanager
def logged(logger: str) -> Iterator[Told]:
    """What a logger says from now on, as lines that can be waited for; any thread may log."""
    told, loop = Told(), asyncio.get_running_loop()

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            loop.call_soon_threadsafe(told.append, record.getMessage())

    handler, source = Telling(), logging.getLogger(logger)
    level = source.level
    source.addHandler(handler)
    source.setLevel(logging.DEBUG)
    try:
        yield told
    finally:
        source.removeHandler(handler)
        source.setLevel(level)


async def ended(pid: int) -> None:
    """Wait until a process has ended that need not be a child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def asked_until(ask: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> None:
    """Ask another program again and again until it says yes: for what no program tells of by itself."""
    wait_s = 0.001
    async with asyncio.timeout(within_s):
        while not await ask():
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.05)
