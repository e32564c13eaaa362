"""Any moment of the past of a long log."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from aetherscale.actors.compute.model import events
from aetherscale.components import kinds
from aetherscale.debugger.past import PastLog, opened
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.sqlite.past import PAST_NAME
from aetherscale.gateways.http.historian import Historian
from aetherscale.kernel.messages import stream_name
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.reservations import NameClaimed, NameReleased, name_stream
from aetherscale.kernel.times import to_rfc3339
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn, percentile
from benchmarks.logs import FIRST_RUN, LATER_RUN, TENANT, VM_EVENTS, envelope, life, open_log

EVENTS: Final = 1_000_000
EVENTS_QUICK: Final = 100_000
VMS: Final = 1000
"""So many are there at any moment; each lives for `VM_EVENTS` events, then another one has its name."""
MOMENTS: Final = 100
WHOLE_MOMENTS: Final = 10
STRIDE: Final = 618_034
"""From each moment to the next: all over the log, never twice the same."""


async def long_log(context: Context) -> Path:
    """The state directory of a log in which VMs come and go."""
    directory = context.directory / "ours"
    log = await open_log(directory)
    total = EVENTS_QUICK if context.quick else EVENTS
    await asyncio.gather(*(lives(log, name, total // VMS) for name in range(VMS)))
    await log.close()
    return directory


@asynccontextmanager
async def pasts(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A log in which VMs come and go, and its keyframes."""
    directory = await long_log(context)
    async with opened(directory, kinds()) as past:
        head = await past.head()
        places = (1 + number * STRIDE % head for number in itertools.count(1))
        await past.state_at(head, deleted=False)
        yield {
            OURS: partial(moments_turn, past, places),
            "fold": partial(fold_turn, past, head),
            "fill": partial(fill_turn, directory, head),
        }


@asynccontextmanager
async def historians(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """The same log, as a node's historian tells it."""
    directory = await long_log(context)
    async with opened(directory, kinds()) as past:
        head = await past.head()
        await past.state_at(head, deleted=False)
    historian = Historian(directory, TENANT)
    places = (1 + number * STRIDE % head for number in itertools.count(1))
    try:
        await historian.ask("state", position=head, kinds=[], limit=None)
        yield {OURS: partial(historian_turn, historian, places, head)}
    finally:
        await historian.close()


async def historian_turn(historian: Historian, places: Iterator[int], head: int) -> Samples:
    """Milliseconds to the whole answer: of moves all over the log, and of what a page asks besides."""

    async def took_ms(name: str, **options: Any) -> float:
        begun = time.perf_counter()
        await historian.ask(name, **options)
        return (time.perf_counter() - begun) * 1000

    moves = [await took_ms("state", position=seq, kinds=[], limit=None) for seq in itertools.islice(places, MOMENTS)]
    some = list(itertools.islice(places, WHOLE_MOMENTS))
    return {
        "move ms": moves,
        "move p95 ms": [percentile(moves, 95)],
        "changes ms": [await took_ms("changes", after=max(0, seq - 2000), until=seq, wanted={}) for seq in some],
        "density ms": [await took_ms("density", after=0, until=head, columns=240)],
        "near density ms": [await took_ms("density", after=max(0, seq - 4096), until=seq, columns=240) for seq in some],
    }


async def lives(log: EventLog, number: int, total: int) -> None:
    """VMs of one name, one after the other, each started and stopped until it is deleted."""
    name, written = f"vm-{number}", 0
    names = name_stream(events.KIND, TENANT, name)
    for generation in itertools.count():
        vm_id = derive_id("bench", name, str(generation))
        stream, happening = stream_name(events.KIND, vm_id), life(vm_id, name)
        for run in range((VM_EVENTS - FIRST_RUN) // LATER_RUN):
            own = tuple(itertools.islice(happening, LATER_RUN if run else FIRST_RUN))
            writes = [Write(stream, None, own)]
            if not run:
                writes.append(Write(names, None, (NameClaimed(events.KIND, name, vm_id),)))
            await log.append(writes, envelope())
            written += len(own)
            if written >= total:
                return
        gone = (events.VmDeleteRequested(kill=False, grace_s=30.0), events.VmDeleted())
        released = Write(names, None, (NameReleased(events.KIND, name, vm_id),))
        await log.append([Write(stream, None, gone), released], envelope())
        written += len(gone)


async def moments_turn(past: PastLog, places: Iterator[int]) -> Samples:
    """Milliseconds of the state at moments all over the log, half of them by time; and with all that was deleted."""
    took, worked, whole = [], [], []
    for number, seq in enumerate(itertools.islice(places, MOMENTS)):
        event = await past.event(seq)
        assert event is not None
        moment = to_rfc3339(event.time_us) if number % 2 else str(seq)
        begun, begun_work = time.perf_counter(), time.process_time()
        found = await past.state_at(await past.position(moment), deleted=False)
        took.append((time.perf_counter() - begun) * 1000)
        worked.append((time.process_time() - begun_work) * 1000)
        assert len(found.registries[events.KIND].aggregates) <= VMS
    for seq in itertools.islice(places, WHOLE_MOMENTS):
        begun = time.perf_counter()
        await past.state_at(seq)
        whole.append((time.perf_counter() - begun) * 1000)
    return {
        "ms": took,
        "p95 ms": [percentile(took, 95)],
        "CPU ms": worked,
        "p95 CPU ms": [percentile(worked, 95)],
        "with deleted ms": whole,
    }


async def fold_turn(past: PastLog, head: int) -> Samples:
    """Milliseconds of one moment, the middle, folded from the first event."""
    plain = PastLog(past._reader, past.kinds, is_proved=False)
    begun = time.perf_counter()
    await plain.state_at(head // 2)
    return {"ms": [(time.perf_counter() - begun) * 1000]}


async def fill_turn(directory: Path, head: int) -> Samples:
    """Seconds in which all keyframes are made and kept; and how large they are."""
    kept = directory / PAST_NAME
    aside = kept.rename(directory / "aside")
    begun = time.perf_counter()
    async with opened(directory, kinds()) as past:
        await past.state_at(head, deleted=False)
    took_s = time.perf_counter() - begun
    size_mib = kept.stat().st_size / 2**20
    aside.rename(kept)
    return {"s": [took_s], "MiB": [size_mib]}


PAST_ROWS: Final = (
    Row(
        "past",
        "the state at any moment of the past, by number or by time",
        pasts,
        (Target("ms", "<=", 25), Target("p95 ms", "<=", 50)),
        rounds=3,
        note="1,000,000 events, 1,000 VMs at any moment and 20,000 in all, keyframes made before. `fold` is the middle "
        "of the log from its first event on; `fill` makes all keyframes.",
    ),
    Row(
        "historian",
        "the past as a node's historian tells it: a move to a moment, 2,000 changes, densities of 240 columns",
        historians,
        (
            Target("move ms", "<=", 25),
            Target("move p95 ms", "<=", 50),
            Target("changes ms", "<=", 30),
            Target("density ms", "<=", 23),
        ),
        rounds=3,
        note="The log of `past`. A move is the whole state as JSON, with the way between the processes; `near density` "
        "is of 4,096 events, each in the column of its time.",
    ),
)
