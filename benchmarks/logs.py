"""Event logs to measure on, made quickly through the store's own append."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.commands import VmSpec
from aetherscale.components import kinds
from aetherscale.debugger.past import LOG_NAME
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.sqlite import open_store
from aetherscale.identifiers import new_epoch, new_id, now_us
from aetherscale.kernel.messages import Envelope, Event, stream_name
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.registry import event_types
from aetherscale.kernel.reservations import NameClaimed, name_stream

NODE: Final = "bench1"
TENANT: Final = "default"
VM_EVENTS: Final = 50
"""Events of one VM in a long log: it is started and stopped again and again."""
FIRST_RUN: Final = 6
LATER_RUN: Final = 5
"""Events of a VM up to its first stop, and from each start to the next stop."""
AT_ONCE: Final = 64
"""Appends that wait together, and so are committed together."""


async def open_log(directory: Path) -> EventLog:
    """The log of a node in a state directory; a new one where there is none."""
    return EventLog(await open_bare(directory), codec())


async def open_bare(directory: Path) -> LogStore:
    """The same without its typed face."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return await open_store(directory / LOG_NAME, node=NODE, epoch=new_epoch(), now_us=now_us())


def codec() -> Codec:
    """Of all event types of a node."""
    return Codec(event_types(kinds()))


def envelope(command_id: str | None = None) -> Envelope[None]:
    """Around whatever a benchmark appends."""
    identifier = command_id or new_id()
    return Envelope(None, TENANT, "user:bench", identifier, identifier, None, now_us())


def life(vm_id: str, name: str) -> Iterator[Event]:
    """The events of a VM that is started and stopped again and again."""
    spec = VmSpec(
        name, "2" * 16, "bare", "raw", 1 << 20, "channel", 1, 192, 10_240, "on-failure", True, {"of": "bench"}
    )
    yield events.VmRequested(vm_id, spec)
    yield events.DiskProvisioned(10_240)
    for run in itertools.count(1):
        if run > 1:
            yield events.VmStartRequested()
        yield events.VmBooted(run, 4000 + run, 123_456_789, "8f3c7d0e-7a53-4a52-9f0e-3f7a3f8e9a11", "tcg")
        yield events.VmReady(run, "channel")
        yield events.VmStopRequested(False, 30.0)
        yield events.VmExited(run, "user", 0, None, "", "")


async def write_vms(log: EventLog, vms: int, vm_events: int) -> list[str]:
    """Append the lives of VMs, each with the claim of its name; their ids. Six events end with a stopped VM."""
    ids = [derive_id("bench", str(number)) for number in range(vms)]

    async def write(vm_id: str, number: int) -> None:
        name = f"vm-{number}"
        own = tuple(itertools.islice(life(vm_id, name), vm_events))
        claimed = Write(name_stream(events.KIND, TENANT, name), 0, (NameClaimed(events.KIND, name, vm_id),))
        await log.append([Write(stream_name(events.KIND, vm_id), 0, own), claimed], envelope())

    for batch in batches(list(enumerate(ids)), AT_ONCE):
        await asyncio.gather(*(write(vm_id, number) for number, vm_id in batch))
    return ids


class Lives:
    """Always the same VMs, whose logs become longer by starts and stops; between two times all of them are stopped."""

    def __init__(self, vms: int) -> None:
        self._ids = [derive_id("bench", str(number)) for number in range(vms)]
        self._lives = [life(vm_id, f"vm-{number}") for number, vm_id in enumerate(self._ids)]
        self._written = 0

    async def grow(self, log: EventLog, total: int) -> None:
        """Append until there are about so many events in all."""
        each = FIRST_RUN + (total // len(self._ids) - FIRST_RUN) // LATER_RUN * LATER_RUN
        while self._written < each:
            count = min(VM_EVENTS, each - self._written)
            async with asyncio.TaskGroup() as group:
                for number in range(len(self._ids)):
                    group.create_task(self._write(log, number, count))
            self._written += count

    async def _write(self, log: EventLog, number: int, count: int) -> None:
        vm_id, name = self._ids[number], f"vm-{number}"
        own = tuple(itertools.islice(self._lives[number], count))
        writes = [Write(stream_name(events.KIND, vm_id), self._written, own)]
        if not self._written:
            writes.append(Write(name_stream(events.KIND, TENANT, name), 0, (NameClaimed(events.KIND, name, vm_id),)))
        await log.append(writes, envelope())


def batches(items: Sequence[tuple[int, str]], size: int) -> Iterator[Sequence[tuple[int, str]]]:
    """The items in pieces."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
