"""A real node as a child process."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nats
import nats.js.errors

from aetherscale.bus.endpoint import read_endpoint
from aetherscale.kernel import subjects
from benchmarks import loops
from benchmarks.logs import NODE, TENANT
from benchmarks.wire import Wire


def environment(directory: Path, *, simulated: bool = True) -> dict[str, str]:
    """The settings of a node in a directory. Bytecode is cached, as it is where the program is installed."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "AETHERSCALE_STATE_DIR": str(directory),
        "AETHERSCALE_NODE": NODE,
        "AETHERSCALE_IMAGE_DIRS": str(directory.parent),
        "AETHERSCALE_TENANT": TENANT,
        "AETHERSCALE_ACCELERATOR": "tcg",
        "AETHERSCALE_SIMULATED": "true" if simulated else "false",
    }


async def start(directory: Path, *, simulated: bool = True) -> tuple[Process, float]:
    """Start a node and wait until it is ready: the process, and the milliseconds that it took."""
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", sys.executable, *loops.program(), "serve"),
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


def cpu_ms(pid: int) -> float:
    """What a process has taken of CPUs until now, without its children, in steps of 10 ms; see proc(5), stat."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) * 1000 / os.sysconf("SC_CLK_TCK")


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
