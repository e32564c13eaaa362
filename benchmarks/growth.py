"""How cost grows with what a node knows: `python -m benchmarks.growth`, plots in docs/performance/."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from aetherscale.debugger.past import LOG_NAME
from aetherscale.eventstore.log import LogReader
from aetherscale.eventstore.projections import replay
from aetherscale.eventstore.sqlite import open_reader
from aetherscale.node import KINDS, projection
from benchmarks import svg
from benchmarks.images import bare_image
from benchmarks.logs import NODE, TENANT, codec
from benchmarks.rows_log import make_log
from benchmarks.rows_node import LIST, STOPPED, known
from benchmarks.served import memory_mib, published, start, stop, wire

VMS = (10, 100, 1_000, 10_000)
EVENTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
TIMES = 5
PLOTS = Path(__file__).parents[1] / "docs" / "performance"
RESULTS = Path(__file__).with_name("results")


async def of_vms(vms: int) -> dict[str, float]:
    """What a node that knows so many VMs takes to start, to list them, to create one more; and its memory."""
    with tempfile.TemporaryDirectory(prefix="aether-bench-") as directory:
        state = await known(Path(directory) / "state", vms)
        process, start_ms = await start(state)
        try:
            await published(state, NODE, vms * (STOPPED + 1))
            plain = wire(state)
            subject = f"aether.v1.{TENANT}.cmd"
            image = str(bare_image(Path(directory)))
            imported = msgspec.json.encode({"source": image, "name": "bare", "ready": "none"})
            plain.ask(f"{subject}.images.import-image", imported)
            list_ms, create_ms = [], []
            for _ in range(TIMES):
                begun = time.perf_counter()
                plain.ask(LIST, b"{}")
                list_ms.append((time.perf_counter() - begun) * 1000)
                begun = time.perf_counter()
                said = plain.ask(f"{subject}.compute.create-vm", b'{"image":"bare"}')
                create_ms.append((time.perf_counter() - begun) * 1000)
                if b'"type":"result"' not in said:
                    raise RuntimeError(said.decode(errors="replace"))
            plain.close()
            memory = memory_mib(process.pid)
        finally:
            await stop(process)
    return {
        "start ms": start_ms,
        "list ms": statistics.median(list_ms),
        "create ms": statistics.median(create_ms),
        "MiB": memory,
    }


async def of_events(count: int) -> dict[str, float]:
    """What the replay of so many events takes."""
    with tempfile.TemporaryDirectory(prefix="aether-bench-") as directory:
        state = Path(directory) / "state"
        await make_log(state, count)
        reader = LogReader(await open_reader(state / LOG_NAME), codec())
        begun = time.perf_counter()
        await replay(projection(KINDS[0]), reader)
        took_ms = (time.perf_counter() - begun) * 1000
        size_mib = (state / LOG_NAME).stat().st_size / (1 << 20)
        await reader.close()
    return {"replay ms": took_ms, "log MiB": size_mib}


def main(arguments: Sequence[str]) -> int:
    """Measure, then draw."""
    parser = argparse.ArgumentParser(prog="just bench-growth", description="How cost grows.")
    parser.add_argument("--quick", action="store_true", help="without the largest sizes")
    quick = parser.parse_args(arguments).quick
    vms = {size: asyncio.run(of_vms(size)) for size in (VMS[:-1] if quick else VMS)}
    print(vms, flush=True)
    events = {size: asyncio.run(of_events(size)) for size in (EVENTS[:3] if quick else EVENTS)}
    print(events, flush=True)
    PLOTS.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "growth.json").write_bytes(
        msgspec.json.format(msgspec.json.encode({"vms": vms, "events": events}), indent=1) + b"\n"
    )
    waits = ("start ms", "list ms", "create ms")
    lines = {name.removesuffix(" ms"): [(size, found[name]) for size, found in vms.items()] for name in waits}
    (PLOTS / "vms.svg").write_text(svg.plot("What a user waits for", "VMs known", "ms", lines))
    memory = {"node": [(size, found["MiB"]) for size, found in vms.items()]}
    (PLOTS / "memory.svg").write_text(svg.plot("Resident memory of the node", "VMs known", "MiB", memory))
    replays = {"replay": [(size, found["replay ms"]) for size, found in events.items()]}
    (PLOTS / "replay.svg").write_text(svg.plot("Replay into the projection of VMs", "events", "ms", replays))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
