"""Blocking work beside the event loop that is never left behind.

`asyncio.to_thread` abandons its thread when the caller is cancelled, and the thread goes on: a file could then appear,
or a rule change, after the caller has learned that the work had been given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a thread. When this is cancelled it waits for the thread to end before it ends itself."""
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        work.exception()  # looked at: how a call ends that was told to stop is no news
        raise


async def until_stopped(function: Callable[[], T], stop: Callable[[], None]) -> T:
    """Call `function` in a thread of its own, since it may wait for long: those that all share stay free.

    When this is cancelled it calls `stop`, which makes the function end, and waits for that. Raises RuntimeError where
    the host has no thread for it.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="transfer")
    try:
        work = asyncio.get_running_loop().run_in_executor(thread, function)
    finally:
        thread.shutdown(wait=False)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait([work])
        work.exception()  # looked at: how a call ends that was told to stop is no news
        raise
