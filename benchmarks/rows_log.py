"""The event log: durable appends, replay, cold start."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.presentation import VM_KIND
from aetherscale.components import kinds
from aetherscale.debugger.past import LOG_NAME
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.projections import SNAPSHOT_EVENTS, Snapshot, load, replay
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.sqlite import open_access
from aetherscale.eventstore.sqlite.snapshots import SqliteSnapshots
from aetherscale.eventstore.store import AS_STORED, PAGE, Access
from aetherscale.kernel.messages import Recorded, stream_name
from aetherscale.runtime.node import projection
from benchmarks import peer
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn, percentile
from benchmarks.logs import VM_EVENTS, codec, envelope, open_log, write_vms

BLOCK: Final = b"\x00" * 4096
SYNCS: Final = 300
REPLAYED: Final = 1_000_000
REPLAYED_QUICK: Final = 200_000
PEER_EVENTS: Final = 20_000


@asynccontextmanager
async def appends(context: Context, tasks: int, each: int, peer_each: int) -> AsyncIterator[Mapping[str, Turn]]:
    """So many tasks that each await one durable append after the other, on streams of their own."""
    log = await open_log(context.directory / "ours")
    numbers = count(1)
    try:
        with peer.application(context.directory / "peer.db") as app:
            yield {
                OURS: lambda: append_turn(log, tasks, each, next(numbers)),
                "fdatasync": partial(sync_turn, context.directory / "sync"),
                "eventsourcing": lambda: peer.append(app, tasks, peer_each),
            }
    finally:
        await log.close()


async def append_turn(log: EventLog, tasks: int, each: int, number: int) -> Samples:
    """Events per second, and the milliseconds that each append took."""
    took: list[float] = []

    async def write(task: int) -> None:
        stream = stream_name(events.KIND, f"{number}-{task}")
        for version in range(each):
            begun = time.perf_counter()
            happened = events.VmBooted(version, 4000, 123_456_789, "8f3c7d0e-7a53-4a52-9f0e-3f7a3f8e9a11", "tcg")
            await log.append([Write(stream, version, (happened,))], envelope())
            took.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            group.create_task(write(task))
    return {"ms": took, "p99 ms": [percentile(took, 99)], "events/s": [tasks * each / (time.perf_counter() - begun)]}


async def sync_turn(path: Path) -> Samples:
    """A block of 4 KiB written and synced, again and again: what the disk can do for one who waits."""
    took = []
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for turn in range(SYNCS):
            begun = time.perf_counter()
            os.pwrite(number, BLOCK, turn * len(BLOCK))
            os.fdatasync(number)
            took.append((time.perf_counter() - begun) * 1000)
    finally:
        os.close(number)
    return {"ms": took, "p99 ms": [percentile(took, 99)], "events/s": [1000 * len(took) / sum(took)]}


@asynccontextmanager
async def replays(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """The fold of a long log into the projection of VMs."""
    directory = context.directory / "ours"
    total = REPLAYED_QUICK if context.quick else REPLAYED
    await make_log(directory, total)
    reader = LogReader(await open_access(directory / LOG_NAME), codec().decoding)
    try:
        payloads = await payloads_of(reader.access)
        gc.freeze()  # those measured are not to search for garbage in what only the benchmark holds
        with peer.application(context.directory / "peer.db") as app:
            await asyncio.to_thread(peer.fill, app, PEER_EVENTS // VM_EVENTS, VM_EVENTS)
            yield {
                OURS: partial(replay_turn, reader),
                "decode": partial(decode_turn, payloads),
                "eventsourcing": partial(peer_replay_turn, app),
            }
    finally:
        await reader.close()


async def make_log(directory: Path, total: int) -> None:
    """A log of so many events of VMs."""
    log = await open_log(directory)
    await write_vms(log, total // VM_EVENTS, VM_EVENTS - 1)
    await log.close()


async def payloads_of(access: Access) -> list[tuple[Callable[[bytes], Any], bytes]]:
    """Every payload with what decodes its type."""
    stored, decoding = LogReader(access, AS_STORED), codec().decoding
    found: list[tuple[Callable[[bytes], Any], bytes]] = []
    while page := await stored.read(len(found), PAGE):
        found += [(decoding.payload(each.seq, each.type, each.schema), each.data) for each in page]
    return found


async def replay_turn(reader: LogReader[Recorded]) -> Samples:
    """Events per second of wall time."""
    begun = time.perf_counter()
    _, position = await replay(projection(VM_KIND), reader)
    return {"events/s": [position / (time.perf_counter() - begun)]}


async def decode_turn(payloads: list[tuple[Callable[[bytes], Any], bytes]]) -> Samples:
    """The same payloads decoded into the same types and dropped: nothing that decodes them can be quicker."""
    begun = time.perf_counter()
    for decode, data in payloads:
        decode(data)
    return {"events/s": [len(payloads) / (time.perf_counter() - begun)]}


async def peer_replay_turn(app: Any) -> Samples:
    """Events per second that the peer folds into aggregates."""
    begun = time.perf_counter()
    seen = peer.replay(app)
    return {"events/s": [seen / (time.perf_counter() - begun)]}


@asynccontextmanager
async def cold_starts(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """What a node does before it can decide anything: open the log, and load its projections."""
    directory = context.directory / "ours"
    await make_log(directory, REPLAYED_QUICK if context.quick else REPLAYED)
    await snapshot_before_the_end(directory)
    yield {
        OURS: partial(starts_turn, directory),
        "read": partial(read_turn, directory / LOG_NAME),
    }


async def snapshot_before_the_end(directory: Path) -> None:
    """Save the snapshots that a node has saved by the time that it has to fold 10,000 events more."""
    reader = LogReader(await open_access(directory / LOG_NAME), codec().decoding)
    kept = await SqliteSnapshots.open(directory / "snapshots.db")
    position = await reader.head() - SNAPSHOT_EVENTS
    for kind in kinds():
        made = projection(kind)
        state, at = await replay(made, reader, position)
        await kept.save(made.name, made.fingerprint, reader.epoch, Snapshot(at, made.encode(state)))
    await kept.close()
    await reader.close()


async def starts_turn(directory: Path) -> Samples:
    """Milliseconds with the snapshot and without."""
    with_snapshot = await start(directory, directory / "snapshots.db")
    without = await start(directory, directory / "none.db")
    (directory / "none.db").unlink()
    return {"ms": [with_snapshot], "no snapshot ms": [without]}


async def start(directory: Path, kept_path: Path) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    log = await open_log(directory)
    kept = await SqliteSnapshots.open(kept_path)
    await load([projection(kind) for kind in kinds()], log, kept)
    took_ms = (time.perf_counter() - begun) * 1000
    await kept.close()
    await log.close()
    return took_ms


async def read_turn(path: Path) -> Samples:
    """Every payload read with SQLite, and dropped."""
    begun = time.perf_counter()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        for _ in connection.execute("SELECT data FROM events ORDER BY seq"):
            pass
    return {"ms": [(time.perf_counter() - begun) * 1000]}


def _append_row(tasks: int, each: int, peer_each: int, *targets: Target) -> Row:
    def opening(context: Context) -> AbstractAsyncContextManager[Mapping[str, Turn]]:
        return appends(context, tasks, each, peer_each)

    who = "1 task" if tasks == 1 else f"{tasks} tasks"
    return Row(f"append-{tasks}", f"durable append awaited by {who}", opening, targets, rounds=9)


LOG_ROWS: Final = (
    _append_row(1, 300, 100, Target("ms", "<=", 1.6, "fdatasync"), Target("ms", "<=", 1.0, "eventsourcing")),
    _append_row(
        64,
        50,
        8,
        Target("events/s", ">=", 5, "fdatasync"),
        Target("events/s", ">=", 15, "eventsourcing"),
        Target("ms", "<=", 11, "fdatasync"),
        Target("p99 ms", "<=", 20, "fdatasync"),
    ),
    _append_row(512, 20, 1, Target("events/s", ">=", 5, "fdatasync"), Target("events/s", ">=", 15, "eventsourcing")),
    Row(
        "replay",
        "replay into the projection of VMs",
        replays,
        (Target("events/s", ">=", 0.20, "decode"), Target("events/s", ">=", 2.5, "eventsourcing")),
        rounds=3,
        note=f"1,000,000 events; the peer replays {PEER_EVENTS:,} of its own, one event of which is smaller.",
    ),
    Row(
        "cold-start",
        "log opened and projections loaded, with a snapshot and 10,000 events after it, and without",
        cold_starts,
        (Target("ms", "<=", 0.25, "read"), Target("no snapshot ms", "<=", 10, "read", "ms")),
        rounds=3,
        note="1,000,000 events. `read` reads every payload of the file with SQLite and drops it.",
    ),
)
