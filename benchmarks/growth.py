"""How cost grows with what a node knows: `python -m benchmarks.growth`, plots in docs/performance/.

By VMs known, each size on a log of its own; and by events in the log, where one log of always the same VMs becomes
longer. A node is measured when it has told its broker of everything. VMs are simulated.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.actors.compute.model.presentation import VM_KIND
from aetherscale.debugger.past import LOG_NAME
from aetherscale.eventstore.projections import replay
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.sqlite import open_access
from aetherscale.runtime.node import projection
from benchmarks import loops, svg
from benchmarks.images import bare_image
from benchmarks.logs import NODE, TENANT, Lives, codec, open_log
from benchmarks.rows_node import LIST, known
from benchmarks.served import memory_mib, published, start, stop, wire
from benchmarks.wire import Wire

VMS: Final = (10, 100, 1_000, 10_000)
EVENTS: Final = (10_000, 100_000, 1_000_000, 3_000_000)
LIVING: Final = 100
"""VMs of the log that becomes longer."""
TIMES: Final = 9
PLOTS: Final = Path(__file__).parents[1] / "docs" / "performance"
RESULTS: Final = Path(__file__).with_name("results")
COMMANDS: Final = f"aether.v1.{TENANT}.cmd"
WAITS: Final = ("start ms", "list ms", "create ms")

Found = dict[int, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Law:
    """How a figure may grow: as which power of what there is.

    What may not grow is looked at from the smallest to the largest size, since the noise of two neighbours looks like
    growth. What may grow in proportion is looked at between the two largest, since at the small end all is fixed cost.
    """

    by: str
    figure: str
    power: float


PROPORTIONAL: Final = 1.1
NOT_AT_ALL: Final = 0.15
"""With room for noise: 12.6 times and 1.4 times for ten times as much."""

LAWS: Final = (
    Law("vms", "start ms", PROPORTIONAL),
    Law("vms", "list ms", PROPORTIONAL),
    Law("vms", "create ms", NOT_AT_ALL),
    Law("vms", "MiB", PROPORTIONAL),
    Law("events", "start ms", NOT_AT_ALL),
    Law("events", "list ms", NOT_AT_ALL),
    Law("events", "create ms", NOT_AT_ALL),
    Law("events", "MiB", NOT_AT_ALL),
    Law("events", "replay ms", PROPORTIONAL),
)


async def of_vms(vms: int) -> dict[str, float]:
    """What a node that knows so many VMs takes to start, to list them, to create one more; and its memory."""
    with tempfile.TemporaryDirectory(prefix="aether-bench-") as directory:
        state = await known(Path(directory) / "state", vms)
        await settle(state)
        return await of_node(state, import_image=True)


async def settle(state: Path) -> None:
    """Run a node until its broker knows the whole log and the rest is as after any other run."""
    process, _ = await start(state)
    try:
        await caught_up(state)
    finally:
        await stop(process)


async def of_node(state: Path, *, import_image: bool) -> dict[str, float]:
    """What a node on this state takes."""
    process, start_ms = await start(state)
    plain = wire(state)
    try:
        await caught_up(state)
        memory = memory_mib(process.pid)
        if import_image:
            wish = {"source": str(bare_image(state.parent)), "name": "bare", "ready": "none"}
            plain.ask(f"{COMMANDS}.images.import-image", msgspec.json.encode(wish))
        list_ms, create_ms = [], []
        for _ in range(TIMES):
            await caught_up(state)
            list_ms.append(ask(plain, LIST, b"{}"))
            create_ms.append(ask(plain, f"{COMMANDS}.compute.create-vm", b'{"image":"bare"}'))
    finally:
        plain.close()
        await stop(process)
    # The first one loads what all others find there.
    list_ms, create_ms = list_ms[1:], create_ms[1:]
    figures = (start_ms, statistics.median(list_ms), statistics.median(create_ms))
    return {**dict(zip(WAITS, figures, strict=True)), "MiB": memory}


def ask(plain: Wire, subject: str, body: bytes) -> float:
    """Milliseconds for the whole reply."""
    begun = time.perf_counter()
    plain.ask(subject, body)
    return (time.perf_counter() - begun) * 1000


async def caught_up(state: Path) -> None:
    """Wait until the node's broker knows all that is in its log."""
    reader = LogReader(await open_access(state / LOG_NAME), codec().decoding)
    head = await reader.head()
    await reader.close()
    await published(state, NODE, head)


async def of_events(sizes: Sequence[int]) -> Found:
    """The same as the log of 100 VMs grows from size to size; and its replay."""
    found: Found = {}
    lives = Lives(LIVING)
    with tempfile.TemporaryDirectory(prefix="aether-bench-") as directory:
        state = Path(directory) / "state"
        for size in sizes:
            log = await open_log(state)
            await lives.grow(log, size)
            await log.close()
            await settle(state)
            found[size] = {
                **await of_node(state, import_image=not found),
                # A replay of seconds is one sample: the better one of two is what it takes.
                "replay ms": min(await replay_ms(state), await replay_ms(state)),
                "log MiB": (state / LOG_NAME).stat().st_size / (1 << 20),
            }
            print(f"{size:,} events: {rounded(found[size])}", flush=True)
    return found


async def replay_ms(state: Path) -> float:
    """Milliseconds to fold the whole log into the projection of VMs."""
    reader = LogReader(await open_access(state / LOG_NAME), codec().decoding)
    begun = time.perf_counter()
    await replay(projection(VM_KIND), reader)
    took_ms = (time.perf_counter() - begun) * 1000
    await reader.close()
    return took_ms


def judged(found: Mapping[str, Found]) -> list[tuple[Law, float]]:
    """Each law with the power that was measured."""
    measured = []
    for law in LAWS:
        points = [(size, each[law.figure]) for size, each in found[law.by].items()]
        first = points[0] if law.power == NOT_AT_ALL else points[-2]
        measured.append((law, svg.slope(first, points[-1])))
    return measured


def table(found: Mapping[str, Found]) -> str:
    """Markdown: how each figure grows, and whether it may."""
    lines = ["| by | figure | grows with the power | at most | |", "| --- | --- | ---: | ---: | --- |"]
    for law, measured in judged(found):
        kept = "kept" if measured <= law.power else "**broken**"
        lines.append(f"| {law.by} | {law.figure} | {measured:.2f} | {law.power:g} | {kept} |")
    return "\n".join(lines)


def rounded(figures: Mapping[str, float]) -> str:
    """For people who wait."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def draw(found: Mapping[str, Found], directory: Path) -> None:
    """Write the plots."""
    directory.mkdir(parents=True, exist_ok=True)
    vms, events = found["vms"], found["events"]
    plots = {
        "vms": ("What a user waits for", "VMs known", "ms", lines(vms, *WAITS)),
        "memory": ("Resident memory of the node", "VMs known", "MiB", lines(vms, "MiB")),
        "log": (f"What a user waits for, {LIVING} VMs", "events in the log", "ms", lines(events, *WAITS)),
        "log-memory": (f"Resident memory, {LIVING} VMs", "events in the log", "MiB", lines(events, "MiB")),
        "replay": ("Replay into the projection of VMs", "events", "ms", lines(events, "replay ms")),
    }
    for name, plot in plots.items():
        (directory / f"{name}.svg").write_text(svg.plot(*plot))


def lines(found: Found, *figures: str) -> dict[str, list[tuple[float, float]]]:
    """Points of each figure, by its name without the unit."""
    return {name.removesuffix(" ms"): [(size, each[name]) for size, each in found.items()] for name in figures}


async def measure(vms: Sequence[int], events: Sequence[int]) -> dict[str, Found]:
    """All of it."""
    by_vms: Found = {}
    for size in vms:
        by_vms[size] = await of_vms(size)
        print(f"{size:,} VMs: {rounded(by_vms[size])}", flush=True)
    return {"vms": by_vms, "events": await of_events(events)}


def main(arguments: Sequence[str]) -> int:
    """Measure, then draw."""
    parser = argparse.ArgumentParser(prog="just bench-growth", description="How cost grows.")
    parser.add_argument("--quick", action="store_true", help="without the largest sizes, and nothing is saved")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        print(table(loops.run(measure(VMS[:-1], EVENTS[:-2]))))
        return 0
    found = loops.run(measure(VMS, EVENTS))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "growth.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    draw(found, PLOTS)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
