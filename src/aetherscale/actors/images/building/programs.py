"""Programs of the host, run for a build: each in a session of its own, to be ended with all that it started.

What they say in the locale C is kept for the message of a failure. Arguments are lists: no shell is in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aetherscale.kernel.fault import Fault

Say = Callable[[str], None]
"""Says what a build is at, in a few words."""

COMMAND_TIMEOUT_S: Final = 900.0
"""How long a program may take, unless it is said otherwise."""
LOG_TAIL_CHARACTERS: Final = 2000
SILENCE_S: Final = 10.0
"""After so long without a line, the caller of `follow` is told how long it has been silent."""

_KEPT_LINES = 60
_NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "You don't have enough free space")
"""The errors of programs, in the locale C, on a disk that is full; the last is apt's."""


def search_path() -> str:
    """PATH with the directories of root's programs, which may be off that of a user."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


async def run(
    program: str,
    *arguments: str,
    cwd: Path | None = None,
    given: bytes | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> str:
    """The output of the program, which reads `given`. Cancelling this ends the program, and all that it started, before
    it returns.

    Raises Fault when it cannot be started, fails, or takes longer than `timeout_s`.
    """
    process = await _started(program, *arguments, cwd=cwd, reads=given is not None)
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await process.communicate(given)
    except TimeoutError:
        raise _not_done(program, arguments, timeout_s) from None
    finally:
        await _end(process)
    if process.returncode != 0:
        raise _failed(program, arguments, process, errors.decode(errors="replace"))
    return output.decode(errors="replace")


async def follow(
    program: str,
    *arguments: str,
    hear: Callable[[str], None],
    silent: Callable[[float], None],
    cwd: Path | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
    silence_s: float = SILENCE_S,
) -> None:
    """Run the program; `hear` is called with each line that it prints, and `silent` with the seconds for which there
    has been none. Cancelled and raises as `run`.
    """
    process = await _started(program, *arguments, cwd=cwd, together=True)
    assert process.stdout is not None
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    silence = 0.0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    async with asyncio.timeout(silence_s):
                        line = await process.stdout.readline()
                except TimeoutError:
                    silence += silence_s
                    silent(silence)
                    continue
                except ValueError:  # a line that is longer than any that says something, and is lost
                    continue
                if not line:
                    break
                silence = 0.0
                kept.append(line.decode(errors="replace").rstrip())
                hear(kept[-1])
            await process.wait()
    except TimeoutError:
        raise _not_done(program, arguments, timeout_s) from None
    finally:
        await _end(process)
    if process.returncode != 0:
        raise _failed(program, arguments, process, "\n".join(kept))


def _called(program: str, arguments: tuple[str, ...]) -> str:
    words = (Path(program).name, *arguments)
    # What comes before the dashes says only how it is run: see `privilege`.
    return f"`{' '.join(words[words.index('--') + 1 :] if '--' in words else words)[:200]}`"


def _not_done(program: str, arguments: tuple[str, ...], timeout_s: float) -> Fault:
    return Fault(f"{_called(program, arguments)} was not done in {timeout_s:.0f} s", "try again", retryable=True)


def _failed(program: str, arguments: tuple[str, ...], process: asyncio.subprocess.Process, said: str) -> Fault:
    called, log_tail = _called(program, arguments), said[-LOG_TAIL_CHARACTERS:]
    if any(word in log_tail for word in _NO_ROOM):
        return Fault(
            f"no room on the disk: {called} failed", "make room: df -h; df -i", log_tail=log_tail, retryable=False
        )
    return Fault(
        f"{called} failed with exit status {process.returncode}",
        "see what it said; on a host without a network, import an image instead",
        retryable=True,
        log_tail=log_tail,
    )


async def _started(
    program: str, *arguments: str, cwd: Path | None, reads: bool = False, together: bool = False
) -> asyncio.subprocess.Process:
    """The program, in a session of its own; its errors come `together` with its output, or apart. Raises Fault.

    asyncio kills a program whose start is cancelled, and then waits for all that it has started, which it does not
    kill. So a cancellation waits here until the program can be ended as a whole.
    """
    starting = asyncio.ensure_future(  # noqa: TID251 - waited for below, also when this is cancelled
        asyncio.create_subprocess_exec(
            program,
            *arguments,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", "PATH": search_path()},
            stdin=asyncio.subprocess.PIPE if reads else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if together else asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _end(await starting)
        raise
    except OSError as error:
        raise Fault(f"{program} cannot be started: {error}", f"install {program}", retryable=False) from error


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a program, if it has not ended, with all that it has started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
