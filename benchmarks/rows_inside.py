"""Inside a guest: programs by the agent alone and with streams, and files that are copied in and out."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from aetherscale.actors.images.building import tiny
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.rows_qemu import COMMANDS
from benchmarks.served import node, wire
from benchmarks.wire import Wire

MEMORY_MIB: Final = 256
MIB: Final = 1024 * 1024
COPIED_MIB: Final = 32
TIMES: Final = 10
VM: Final = "inside"


@asynccontextmanager
async def insides(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A real node with a guest of the image `tiny`, whose agent answers."""
    image = context.directory / "tiny"
    await tiny.build(image, context.directory / "packages", lambda word: None)
    state = context.directory / "state"
    async with node(state, simulated=False):
        plain = wire(state)
        wish = {"source": str(image), "name": "tiny", "ready": "agent"}
        await asyncio.to_thread(plain.ask, f"{COMMANDS}.images.import-image", msgspec.json.encode(wish))
        vm = {"name": VM, "image": "tiny", "memory-mib": MEMORY_MIB}
        await asyncio.to_thread(plain.ask, f"{COMMANDS}.compute.create-vm", msgspec.json.encode(vm))
        try:
            yield {OURS: partial(asyncio.to_thread, inside_turn, plain, context.directory, itertools.count())}
        finally:
            end = msgspec.json.encode({"vm-id": VM, "kill": True})
            await asyncio.to_thread(plain.ask, f"{COMMANDS}.compute.delete-vm", end)
            plain.close()


def inside_turn(plain: Wire, directory: Path, numbers: Any) -> Samples:
    """Milliseconds for `true` over NATS, from the request to its end; MiB/s of `vm copy` as a whole process."""
    wish = {"vm-id": VM, "command": ["true"]}
    agent, streams = [], []
    for _ in range(TIMES):
        agent.append(asked_ms(plain, "exec-vm", wish))
        streams.append(asked_ms(plain, "vm-program", {**wish, "session": f"s{next(numbers)}"}))
    there, back = directory / "there", directory / "back"
    there.write_bytes(os.urandom(COPIED_MIB * MIB))
    copies = {
        "in MiB/s": [copied_mib_per_s(directory, str(there), f"{VM}:/data/there")],
        "out MiB/s": [copied_mib_per_s(directory, f"{VM}:/data/there", str(back))],
    }
    if back.read_bytes() != there.read_bytes():
        raise RuntimeError("the copy is another file")
    return {"agent ms": agent, "streams ms": streams, **copies}


def asked_ms(plain: Wire, task: str, options: Mapping[str, Any]) -> float:
    """How long a task takes."""
    begun = time.perf_counter()
    plain.ask(f"{COMMANDS}.compute.{task}", msgspec.json.encode(options))
    return (time.perf_counter() - begun) * 1000


def copied_mib_per_s(directory: Path, source: str, target: str) -> float:
    """The rate of a copy, with its start, both digests and the sync."""
    begun = time.perf_counter()
    words = [sys.executable, "-m", "aetherscale", "vm", "copy", "--force", source, target]
    words += ["--state-dir", str(directory / "state"), "--json"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return COPIED_MIB / (time.perf_counter() - begun)


INSIDE_ROWS: Final = (
    Row(
        "inside",
        f"`true` in a guest of the image tiny over NATS, and a file of {COPIED_MIB} MiB copied in and out (TCG)",
        insides,
        (
            Target("agent ms", "<=", 100),
            Target("streams ms", "<=", 150),
            Target("in MiB/s", ">=", 5),
            Target("out MiB/s", ">=", 5),
        ),
        rounds=3,
        note="`agent` is exec-vm, `streams` vm-program. A copy is the whole command: start, both SHA-256, sync.",
    ),
)
