"""A real node as a child process, and the plainest client of its NATS server that there can be."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import nats
import nats.js.errors

from aetherscale.bus.endpoint import Endpoint, read_endpoint
from aetherscale.kernel import subjects
from benchmarks.logs import NODE, TENANT

READ_BYTES: Final = 1024 * 1024


def environment(directory: Path, *, simulated: bool = True) -> dict[str, str]:
    """The settings of a node in a directory. Bytecode is cached, as it is where the program is installed."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "AETHERSCALE_STATE_DIR": str(directory),
        "AETHERSCALE_NODE": NODE,
        "AETHERSCALE_TENANT": TENANT,
        "AETHERSCALE_ACCELERATOR": "tcg",
        "AETHERSCALE_SIMULATED": "true" if simulated else "false",
    }


async def start(directory: Path, *, simulated: bool = True) -> tuple[Process, float]:
    """Start a node and wait until it is ready: the process, and the milliseconds that it took."""
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "aetherscale", "serve"),
        stdout=PIPE,
        stderr=DEVNULL,
        env=environment(directory, simulated=simulated),
    )
    assert process.stdout is not None
    while not (line := await process.stdout.readline()).startswith(b"ready"):
        if not line:
            raise RuntimeError(f"the node did not start on {directory}")
    return process, (time.perf_counter() - begun) * 1000


async def stop(process: Process) -> None:
    """End a node, and wait for that."""
    process.terminate()
    await process.communicate()


@asynccontextmanager
async def node(directory: Path, *, simulated: bool = True) -> AsyncIterator[Process]:
    """A node for as long as the block lasts."""
    process, _ = await start(directory, simulated=simulated)
    try:
        yield process
    finally:
        await stop(process)


def memory_mib(pid: int) -> float:
    """Resident memory of a process alone, without its children; see proc(5), VmRSS."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


class Wire:
    """A blocking client that looks at nothing but the end of a reply, so that it is the node that is measured."""

    def __init__(self, endpoint: Endpoint) -> None:
        host, _, port = endpoint.url.rpartition("//")[2].rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._numbers = itertools.count(1)
        self._receive_until(b"\r\n")
        options = {"verbose": False, "headers": True, "no_responders": True, "lang": "bench", "version": "1"}
        if endpoint.user:
            options |= {"user": endpoint.user, "pass": endpoint.password}
        self._socket.sendall(b"CONNECT " + msgspec.json.encode(options) + b"\r\nSUB _INBOX.bench.* 1\r\nPING\r\n")
        self._receive_until(b"PONG\r\n")

    def ask(self, subject: str, body: bytes) -> bytes:
        """Everything that comes in reply, up to the empty message that ends it."""
        inbox = f"_INBOX.bench.{next(self._numbers)}"
        self._socket.sendall(f"PUB {subject} {inbox} {len(body)}\r\n".encode() + body + b"\r\n")
        return self._receive_until(f"MSG {inbox} 1 0\r\n\r\n".encode())

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _receive_until(self, end: bytes) -> bytes:
        parts: list[bytes] = []
        tail = b""
        while not tail.endswith(end):
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise ConnectionError("the server hung up")
            parts.append(data)
            tail = (tail + data)[-len(end) :]
        return b"".join(parts)


def wire(directory: Path) -> Wire:
    """A client of the node in a directory."""
    return Wire(read_endpoint(directory))


async def published(directory: Path, node: str, seq: int) -> None:
    """Wait until a node has told its broker of every event up to this one, so that it has nothing to do."""
    endpoint = read_endpoint(directory)
    client = await nats.connect(endpoint.url, user=endpoint.user or None, password=endpoint.password or None)
    stream = subjects.event_stream(node)
    while True:
        with suppress(nats.js.errors.NotFoundError):
            if (await client.jetstream().stream_info(stream)).state.last_seq >= seq:
                break
        await asyncio.sleep(0.05)
    await client.close()


async def whole_process(command: Sequence[str], env: dict[str, str] | None = None) -> dict[str, list[float]]:
    """Milliseconds from the start of a program to its end."""
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, env=env)
    status: Any = await process.wait()
    if status:
        raise RuntimeError(f"{' '.join(command)}: exit status {status}")
    return {"ms": [(time.perf_counter() - begun) * 1000]}
