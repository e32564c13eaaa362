"""Processes by identity: a pid alone may be another process's by the time that it is used.

Knows nothing of what the processes do. Source: proc(5) for `stat` and `exe`, pidfd_open(2).
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from msgspec import Struct


class Identity(Struct, frozen=True, rename="kebab"):
    """One process and no other: no two of one boot share both pid and time of start."""

    pid: int
    start_ticks: int
    """Clock ticks between the boot and the start of the process."""
    boot_id: str
    exe: str
    """The program, by path."""


def identify(pid: int) -> Identity | None:
    """The process that has this pid now; None where none has, or only a zombie."""
    proc = Path("/proc") / str(pid)
    try:
        stat = (proc / "stat").read_bytes()
        exe = os.readlink(proc / "exe")
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The name, in parentheses, may itself have blanks and parentheses.
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    if state in (b"Z", b"X"):
        return None
    return Identity(pid, int(fields[18]), boot_id, exe.removesuffix(" (deleted)"))


async def end(identity: Identity, *, grace_s: float) -> bool:
    """End exactly this process: SIGTERM, then SIGKILL after `grace_s`. False where it has ended before.

    Raises PermissionError where it is not ours to end, TimeoutError where not even SIGKILL ends it (it hangs in the
    kernel).
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor holds the process that has the pid now; only then is it worth asking who that is.
        if identify(identity.pid) != identity:
            return False
        for last, number in ((False, signal.SIGTERM), (True, signal.SIGKILL)):
            signal.pidfd_send_signal(descriptor, number)
            try:
                async with asyncio.timeout(grace_s):
                    await _ended(descriptor)
                return True
            except TimeoutError:
                if last:
                    raise
        return True
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)


async def lives_on(identity: Identity, *, patience_s: float) -> bool:
    """Whether this process is still there after so long; answers at once where it is not."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if identify(identity.pid) != identity:
            return False
        async with asyncio.timeout(patience_s):
            await _ended(descriptor)
        return False
    except TimeoutError:
        return True
    finally:
        os.close(descriptor)


async def _ended(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
