"""libvirt as a contestant, where it is installed: our end of `benchmarks.libvirt_peer`.

Debian: `apt-get install --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu python3-libvirt`. No
service has to run; the benchmarks start a `libvirtd` of their own and end it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from asyncio import create_subprocess_exec, timeout
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.harness import Samples, Turn
from benchmarks.images import bare_image

NAME: Final = "libvirt"
ABSENT: Final = "libvirt is not installed here, so that it has no figures."
ANSWER_LIMIT_S: Final = 120.0
PYTHONS: Final = (sys.executable, "/usr/bin/python3")


@cache
def python() -> str | None:
    """The Python that has the binding, where the daemon is there as well; else None."""
    if not shutil.which("libvirtd", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return None
    for each in PYTHONS:
        if shutil.which(each) and not subprocess.run([each, "-c", "import libvirt"], capture_output=True).returncode:
            return each
    return None


class Libvirt:
    """A libvirtd of our own, that is asked to measure itself."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, do: str, **options: int) -> Samples:
        """What one of its methods has measured. Raises RuntimeError with what went wrong instead."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode({"do": do, **options}) + b"\n")
        answer: Any = msgspec.json.decode(await self.line())
        return {str(name): list(values) for name, values in answer.items()}

    async def line(self) -> bytes:
        """The next line that it says."""
        assert self._process.stdout is not None
        async with timeout(ANSWER_LIMIT_S):
            line = await self._process.stdout.readline()
        if not line or line.startswith(b"error"):
            raise RuntimeError(f"libvirt: {line.decode(errors='replace').strip() or 'it ended without a word'}")
        return line


@asynccontextmanager
async def libvirt(known: int = 0) -> AsyncIterator[Libvirt | None]:
    """A libvirtd that knows so many guests; None where it is not installed."""
    found = python()
    if found is None:
        yield None
        return
    # In a directory of its own, since it gives up being root, and its sockets' paths have to be short.
    with tempfile.TemporaryDirectory(prefix="aether-libvirt-") as directory:
        image = bare_image(Path(directory))
        process = await create_subprocess_exec(
            *(found, "-m", "benchmarks.libvirt_peer", directory, str(image)),
            stdin=PIPE,
            stdout=PIPE,
            cwd=Path(__file__).parents[1],
            start_new_session=True,  # Ctrl-C is for us; it ends when we do, and takes its guests along
        )
        made = Libvirt(process)
        try:
            await made.line()
            if known:
                await made.ask("known", domains=known)
            yield made
        finally:
            assert process.stdin is not None
            process.stdin.close()  # which tells it to end
            async with timeout(ANSWER_LIMIT_S):
                await process.wait()


@asynccontextmanager
async def beside(do: str, known: int = 0, **options: int) -> AsyncIterator[Mapping[str, Turn]]:
    """The contestant of a row: none where it is not installed."""
    async with libvirt(known) as found:
        yield {NAME: partial(found.ask, do, **options)} if found else {}
