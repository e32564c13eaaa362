"""The `eventsourcing` package on its SQLite module: the peer of the event log. It is used as its documentation says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from benchmarks.harness import Samples


class Machine(Aggregate):
    """An aggregate with about as much in it as a VM, and one event that recurs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0
        self.boot_id = ""

    @event("Booted")
    def boot(self, run: int, pid: int, boot_id: str) -> None:
        """QEMU runs."""
        self.pid, self.boot_id = pid, boot_id


@contextmanager
def application(path: Path) -> Iterator[Application[UUID]]:
    """An application on a file of its own."""
    made: Application[UUID] = Application(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path), "SQLITE_POOL_SIZE": "16"}
    )
    try:
        yield made
    finally:
        made.close()


def boot(machine: Machine, number: int) -> None:
    """One more event of a machine."""
    machine.boot(number, 4000 + number, "8f3c7d0e-7a53-4a52-9f0e-3f7a3f8e9a11")


async def append(app: Application[UUID], threads: int, each: int) -> Samples:
    """So many threads, each of which saves so often, one event at a time."""

    def work(number: int) -> list[float]:
        machine = Machine(f"m{number}")
        app.save(machine)
        took = []
        for run in range(each):
            boot(machine, run)
            begun = time.perf_counter()
            app.save(machine)
            took.append((time.perf_counter() - begun) * 1000)
        return took

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        parts = await asyncio.gather(*(loop.run_in_executor(pool, work, number) for number in range(threads)))
        elapsed_s = time.perf_counter() - begun
    return {"ms": [ms for part in parts for ms in part], "events/s": [threads * each / elapsed_s]}


def fill(app: Application[UUID], machines: int, each: int) -> None:
    """A log to be replayed: each machine is saved once with all its events."""
    for number in range(machines):
        machine = Machine(f"m{number}")
        for run in range(each - 1):
            boot(machine, run)
        app.save(machine)


def replay(app: Application[UUID]) -> int:
    """Fold the whole log into machines by id, page by page; how many events there were."""
    machines: dict[Any, Any] = {}
    start: int | None = 1
    seen = 0
    while start is not None:
        notifications = app.recorder.select_notifications(start, 1000)
        for notification in notifications:
            happened: Any = app.mapper.to_domain_event(notification)
            machines[happened.originator_id] = happened.mutate(machines.get(happened.originator_id))
        seen += len(notifications)
        start = notifications[-1].id + 1 if notifications else None
    return seen
