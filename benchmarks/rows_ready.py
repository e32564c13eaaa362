"""A guest from nothing to ready: what the way of a node costs over a boot by hand of the same image."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from aetherscale.actors.compute.qemu.argv import READY_PORT
from aetherscale.actors.images.building import tiny
from benchmarks import by_hand
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.rows_qemu import COMMANDS
from benchmarks.served import node, wire
from benchmarks.wire import Wire

MEMORY_MIB: Final = 128
_READY: Final = b"ready"


@asynccontextmanager
async def readies(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A real node with the image `tiny`, and the same file by hand."""
    image = context.directory / "tiny"
    built = await tiny.build(image, context.directory / "packages", lambda word: None)
    state = context.directory / "state"
    async with node(state, simulated=False):
        plain = wire(state)
        wish = {"source": str(image), "name": "tiny", "ready": "channel"}
        await asyncio.to_thread(plain.ask, f"{COMMANDS}.images.import-image", msgspec.json.encode(wish))
        try:
            yield {
                OURS: partial(asyncio.to_thread, node_turn, plain, itertools.count()),
                "by hand": partial(asyncio.to_thread, hand_turn, context.directory, image, built.format),
            }
        finally:
            plain.close()


def node_turn(plain: Wire, numbers: Any) -> Samples:
    """Milliseconds from the request over NATS to the reply that the guest is ready. It is deleted outside of that."""
    name = f"vm-{next(numbers)}"
    wish = {"name": name, "image": "tiny", "memory-mib": MEMORY_MIB}
    begun = time.perf_counter()
    plain.ask(f"{COMMANDS}.compute.create-vm", msgspec.json.encode(wish))
    took_ms = (time.perf_counter() - begun) * 1000
    plain.ask(f"{COMMANDS}.compute.delete-vm", msgspec.json.encode({"vm-id": name, "kill": True}))
    return {"ready ms": [took_ms]}


def hand_turn(directory: Path, image: Path, image_format: str) -> Samples:
    """The same of QEMU on a copy of the image, with the devices of such a guest, which says so on its port."""
    copy = Path(shutil.copy(image, directory / "by-hand"))
    channel = directory / "ready.sock"
    with by_hand.listening(channel) as listener:
        begun = time.perf_counter()
        pid = os.posix_spawnp(
            "setpriv",
            [
                *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-M", "q35", "-accel", "tcg"),
                *("-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-device", "virtio-rng-pci"),
                *("-drive", f"file={copy},format={image_format},if=virtio"),
                *("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile="),
                *("-device", "virtio-serial-pci", "-chardev", f"socket,id=ready,path={channel}"),
                *("-device", f"virtserialport,chardev=ready,name={READY_PORT}"),
                *("-chardev", "null,id=line", "-device", "isa-serial,chardev=line"),
            ],
            os.environ,
        )
        connection, _ = listener.accept()
    with connection, connection.makefile("rb") as lines:
        while _READY not in (line := lines.readline()):
            assert line, "QEMU has ended"
    took_ms = (time.perf_counter() - begun) * 1000
    by_hand.end(pid)
    return {"ready ms": [took_ms]}


READY_ROWS: Final = (
    Row(
        "ready",
        "a VM of the image tiny over NATS, from the request until its guest is ready (TCG)",
        readies,
        (Target("ready ms", "<=", 100, "by hand", more=True), Target("ready ms", "<=", 1.1, "by hand")),
        rounds=15,
        note="By hand the guest gets a copy of the image that is made beforehand, and QEMU no user of its own.",
    ),
)
