"""VDE switches: real ones of the package vde2, and one that answers as a test says."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 30.0
REQUEST_BYTES: Final = 12 + 110
ADDRESS: Final = struct.Struct("=H108s")


def missing() -> str:
    """Why there can be no real switch here; "" where there can."""
    return "" if shutil.which("vde_switch") else "vde_switch is not installed: apt-get install vde2"


def _listens(path: Path) -> bool:
    """Whether a program takes connections there. It makes the socket before."""
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0


@contextmanager
def vde_switch(path: Path, *options: str, within: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A switch of vde2 whose directory this is, until the end, or until it is ended. `within` are words before it."""
    words = [*within, "vde_switch", "-sock", str(path), *options]
    # It ends with its stdin, which is its console.
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            deadline_s = time.monotonic() + PATIENCE_S
            while not _listens(path / "ctl"):
                assert process.poll() is None, f"vde_switch ended with {process.returncode}"
                assert time.monotonic() < deadline_s, "vde_switch makes no socket"
                time.sleep(0.01)
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


async def until_in_use(path: Path, ports: int) -> None:
    """Wait until so many ports of a real switch have something plugged in: each has a connection to its socket.

    The socket of a port in its directory says less: vde_switch forgets now and then to remove it.
    """
    connected = re.compile(rf"^\S+: \S+ \S+ \S+ 0001 03 +\d+ {re.escape(str(path))}/ctl$", re.MULTILINE)
    async with asyncio.timeout(PATIENCE_S):
        while len(connected.findall(Path("/proc/net/unix").read_text())) != ports:  # noqa: ASYNC110 - of a program
            await asyncio.sleep(0.02)


@dataclass
class PretendSwitch:
    """A program at a switch's place. `answer` makes of the address that a port is asked for what is sent back."""

    answer: Callable[[bytes], bytes | None]
    requests: list[bytes] = field(default_factory=list)
    ports: int = 0
    """Streams that are open now."""
    unplugged: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when one has been closed."""

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[PretendSwitch]:
        """It listens at this path."""
        path.mkdir(exist_ok=True)
        async with await asyncio.start_unix_server(self._asked, path / "ctl"):
            yield self
        await asyncio.sleep(0)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ports += 1
        try:
            request = await reader.read(4096)
            if request:
                self.requests.append(request)
                answer = self.answer(request[12:REQUEST_BYTES])
                if answer is not None:
                    writer.write(answer)
                    await reader.read()
        finally:
            self.ports -= 1
            self.unplugged.set()
            writer.close()


@contextmanager
def datagrams(path: Path) -> Iterator[socket.socket]:
    """A socket of datagrams, called by this path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))
        bound.settimeout(PATIENCE_S)
        yield bound
