"""`python -m benchmarks.growth`: how cost grows with the VMs that a node knows, and with the events of its log.

Nothing that a user waits for may grow faster than what it shows. Each figure is the median of a few; there is no peer
beside it, since what counts is the slope. It draws `docs/performance/*.svg` and writes `growth.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from aetherscale.actors.compute.events import KIND
from aetherscale.actors.images import events as images
from aetherscale.app import LOG_NAME
from aetherscale.eventstore.log import EventLog, LogReader, Write
from aetherscale.eventstore.projections import SNAPSHOT_EVENTS, Snapshot, replay
from aetherscale.eventstore.sqlite import open_reader
from aetherscale.eventstore.sqlite.views import SqliteViews
from aetherscale.kernel.claims import NameClaimed, claim_stream
from aetherscale.kernel.messages import Event, stream_name
from aetherscale.kernel.names import derive_id
from aetherscale.node import KINDS, projection
from benchmarks.harness import percentile
from benchmarks.logs import AT_ONCE, TENANT, batches, codec, envelope, life, open_log, write_vms
from benchmarks.plot import log_log
from benchmarks.report import number
from benchmarks.served import Wire, memory_mib, node, start, stop, wire

VMS: Final = (10, 100, 1_000, 10_000)
EVENTS: Final = (10_000, 100_000, 1_000_000, 3_000_000)
QUICK: Final = 1_000
"""Of a look, the most VMs; a hundred times as many events."""
STOPPED: Final = 6
"""Events of a VM up to its being stopped."""
RUN: Final = 5
"""Events of a stopped VM until it is stopped again."""
LONG_VMS: Final = 100
"""VMs in the log that grows; they are started and stopped again and again."""
PIECE: Final = 50
"""Events that one VM appends at once."""
STARTS: Final = 3
TIMES: Final = 9

RESULTS: Final = Path(__file__).with_name("results")
PICTURES: Final = Path(__file__).parents[1] / "docs" / "performance"

COMMAND: Final = f"aether.v1.{TENANT}.cmd.compute."


class Point(Struct, frozen=True):
    """What was measured at one size."""

    size: int
    figures: dict[str, float]


async def by_vms(directory: Path, sizes: Sequence[int]) -> list[Point]:
    """Nodes that know so many VMs, all of them stopped."""
    points = []
    for size in sizes:
        state = directory / f"vms-{size}"
        log = await open_log(state)
        await write_image(log)
        await write_vms(log, size, STOPPED)
        await log.close()
        points.append(Point(size, await node_figures(state)))
        print(line(points[-1], "VMs"), flush=True)
    return points


async def by_events(directory: Path, sizes: Sequence[int]) -> list[Point]:
    """One log that grows while its VMs stay as many."""
    state = directory / "long"
    log = await open_log(state)
    await write_image(log)
    ids = await write_vms(log, LONG_VMS, STOPPED)
    lives = {vm_id: itertools.islice(life(vm_id, f"vm-{number}"), STOPPED, None) for number, vm_id in enumerate(ids)}
    versions = dict.fromkeys(ids, STOPPED)
    points = []
    for size in sizes:
        await lengthen(log, size, lives, versions)
        head = await log.head()
        await log.close()
        without_ms = await started_ms(state)
        figures = {"replay ms": await replayed_ms(state), "start without snapshot ms": without_ms}
        figures |= await node_figures(state)
        figures["log MiB"] = (state / LOG_NAME).stat().st_size / 2**20
        points.append(Point(head, figures))
        print(line(points[-1], "events"), flush=True)
        log = await open_log(state)
        versions |= {vm_id: (await log.read_stream(stream_name(KIND, vm_id)))[-1].version for vm_id in ids[:1]}
    await log.close()
    return points


async def write_image(log: EventLog) -> None:
    """An image that VMs can be created from."""
    image_id, name = derive_id("bench", "image"), "bare"
    requested = images.ImageImportRequested(image_id, name, "/bare.raw", None, "none")
    stored = images.ImageStored("raw", "a" * 64, 1 << 20, 1 << 20)
    claimed = Write(claim_stream(images.KIND, TENANT, name), 0, (NameClaimed(images.KIND, name, image_id),))
    await log.append([Write(stream_name(images.KIND, image_id), 0, (requested, stored)), claimed], envelope())


async def lengthen(log: EventLog, size: int, lives: Mapping[str, Iterator[Event]], versions: dict[str, int]) -> None:
    """Let all VMs live on until the log has about so many events."""

    async def live(vm_id: str, more: int) -> None:
        happened = tuple(itertools.islice(lives[vm_id], more))
        await log.append([Write(stream_name(KIND, vm_id), versions[vm_id], happened)], envelope())
        versions[vm_id] += more

    missing = (size - await log.head()) // len(lives) // RUN * RUN
    while missing > 0:
        more = min(PIECE, missing)
        missing -= more
        for batch in batches(list(enumerate(lives)), AT_ONCE):
            await asyncio.gather(*(live(vm_id, more) for _, vm_id in batch))


async def replayed_ms(state: Path) -> float:
    """Fold the whole log into the projections, and leave the snapshots of 10,000 events before its end."""
    reader = LogReader(await open_reader(state / LOG_NAME), codec())
    views = await SqliteViews.open(state / "views.db")
    until = max(0, await reader.head() - SNAPSHOT_EVENTS)
    took_s = 0.0
    for kind in KINDS:
        made = projection(kind)
        begun = time.perf_counter()
        folded, at = await replay(made, reader, until)
        took_s += time.perf_counter() - begun
        await views.save(made.name, made.fingerprint, reader.epoch, Snapshot(at, made.encode(folded)))
        begun = time.perf_counter()
        await replay(made, reader, after=(folded, at))
        took_s += time.perf_counter() - begun
    await views.close()
    await reader.close()
    return took_s * 1000


async def started_ms(state: Path) -> float:
    """A start, once."""
    process, took_ms = await start(state)
    await stop(process)
    return took_ms


async def node_figures(state: Path) -> dict[str, float]:
    """What a client waits for, and what the node takes; a start is the median of three."""
    starts_ms = [await started_ms(state) for _ in range(STARTS)]
    async with node(state) as process:
        client = wire(state)
        names = itertools.count(1)
        try:
            figures = {
                "start ms": statistics.median(starts_ms),
                "list ms": timed_ms(lambda: asked(client, "list-vms", {})),
                "read one ms": timed_ms(lambda: asked(client, "vm-info", {"vm-id": "vm-5"})),
                "create ms": timed_ms(
                    lambda: asked(client, "create-vm", {"image": "bare", "name": f"new-{next(names)}"})
                ),
            }
        finally:
            client.close()
        return figures | {"node MiB": memory_mib(process.pid)}


def asked(client: Wire, task: str, options: Mapping[str, str]) -> None:
    """Ask, and read the whole reply. Raises RuntimeError for one that is no result."""
    reply = client.ask(COMMAND + task, msgspec.json.encode(options))
    if b'"type":"result"' not in reply:
        raise RuntimeError(f"{task}: {reply[-500:]!r}")


def timed_ms(ask: Callable[[], None]) -> float:
    """The median of several; the first counts for nothing."""
    took = []
    for _ in range(TIMES + 1):
        begun = time.perf_counter()
        ask()
        took.append((time.perf_counter() - begun) * 1000)
    return percentile(took[1:], 50)


def line(point: Point, what: str) -> str:
    """One size in words."""
    figures = ", ".join(f"{name} {number(value)}" for name, value in point.figures.items())
    return f"{point.size:,} {what}: {figures}"


def draw(title: str, x_label: str, unit: str, points: Sequence[Point]) -> str:
    """The picture of all figures that are in one unit."""
    names = [name for name in points[0].figures if name.endswith(f" {unit}")]
    series = {name.removesuffix(f" {unit}"): [(point.size, point.figures[name]) for point in points] for name in names}
    return log_log(title, x_label, unit, series)


async def measure(vms: Sequence[int], events: Sequence[int]) -> dict[str, list[Point]]:
    """All sizes, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="aether-bench-") as directory:
        return {
            "vms": await by_vms(Path(directory), vms),
            "events": await by_events(Path(directory), events),
        }


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="just bench-growth", description="Measure how cost grows, and draw it.")
    parser.add_argument("--quick", action="store_true", help="only the smaller sizes: for a look")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where growth.json goes")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="where the SVG files go")
    chosen = parser.parse_args(arguments)
    vms = [size for size in VMS if not chosen.quick or size <= QUICK]
    events = [size for size in EVENTS if not chosen.quick or size <= 100 * QUICK]
    grown = asyncio.run(measure(vms, events))
    for directory in (chosen.results, chosen.pictures):
        directory.mkdir(parents=True, exist_ok=True)
    (chosen.results / "growth.json").write_bytes(msgspec.json.format(msgspec.json.encode(grown), indent=1) + b"\n")
    for what, x_label in (("vms", "VMs known, stopped"), ("events", f"events in the log of {LONG_VMS} VMs")):
        for unit, title in (("ms", "What somebody waits for"), ("MiB", "What it takes")):
            picture = draw(f"{title}, by {x_label}", x_label, unit, grown[what])
            (chosen.pictures / f"{what}-{unit.lower()}.svg").write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
