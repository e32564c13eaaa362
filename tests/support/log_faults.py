"""What happens to a log on a disk that fails, each case played in a process of its own.

    python -m tests.support.log_faults CASE DIRECTORY

Each case asserts what has to hold; its exit status says whether it did.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.integrity import verify
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.store import InDoubt, StorageFull
from tests.support.event_logs import EPOCH, NODE, NOW_US, append_of, new, open_reader, read_all, write
from tests.support.failing_sync import fail_to_sync
from tests.support.log_writer import die_with_parent

RESERVE = 256 * 1024
BIG = b"\x00" * 20_000


async def opened(directory: Path) -> LogStore:
    return await open_store(directory / "events.db", node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=RESERVE)


async def a_commit_that_cannot_be_synced_is_in_doubt(directory: Path) -> None:
    store = await opened(directory)
    for version in range(3):
        await store.append(append_of(write("vm-1", version)))

    fail_to_sync()
    for _ in range(2):
        with_failure = asyncio.gather(
            *(store.append(append_of(write(f"vm-{i}", 0))) for i in range(10, 13)), return_exceptions=True
        )
        assert all(isinstance(outcome, InDoubt) for outcome in await with_failure)

    assert len(await read_all(store)) == 3, "reading goes on"
    files = {name: (directory / name).read_bytes() for name in ("events.db", "events.db-wal", "events.head")}
    await store.close()
    for name, content in files.items():
        assert (directory / name).read_bytes() == content, f"closing a log in doubt wrote to {name}"


async def fill(store: LogStore, stream: str, data: bytes, most: int = 10_000) -> int:
    """Append until the disk is full; how many events the stream then has."""
    version = 0
    with suppress(StorageFull):
        while version < most:
            await store.append(append_of(write(stream, version, new("Filled", data)), command_id=f"{stream}-{version}"))
            version += 1
    return version


async def a_full_disk_refuses_and_loses_nothing(directory: Path) -> None:
    ballast = directory / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 512 * 1024)
    store = await opened(directory)
    acknowledged = await fill(store, "vm-1", BIG)
    acknowledged += await fill(store, "vm-2", b"")
    assert acknowledged > 0
    assert len(await read_all(store)) == acknowledged, "reading goes on"
    assert len(await store.read_stream("vm-1")) > 0

    for version in range(10):
        await store.append(append_of(write("vm-stop", version), urgent=True))
    try:
        await store.append(append_of(write("vm-3", 0)))
    except StorageFull:
        pass
    else:
        raise AssertionError("what is not urgent ate from the reserve")
    mixed = await asyncio.gather(
        store.append(append_of(write("vm-4", 0))),
        store.append(append_of(write("vm-stop", 10), urgent=True)),
        return_exceptions=True,
    )
    assert isinstance(mixed[0], StorageFull), mixed
    assert not isinstance(mixed[1], BaseException), mixed
    acknowledged += 11

    ballast.unlink()
    await store.append(append_of(write("vm-5", 0)))
    acknowledged += 1
    assert (directory / "events.reserve").stat().st_size == RESERVE, "the reserve was filled again"
    events = await read_all(store)
    assert len(events) == acknowledged
    await store.close()

    found = verify(directory / "events.db")
    assert (found.events, found.problems) == (acknowledged, ()), found
    store = await opened(directory)
    assert await read_all(store) == events
    await store.close()


async def a_node_can_be_started_on_a_full_disk(directory: Path) -> None:
    await start_on_a_full_disk(directory, 5)


async def a_node_whose_disk_filled_up_can_be_started_again(directory: Path) -> None:
    await start_on_a_full_disk(directory, 10_000)


async def start_on_a_full_disk(directory: Path, most: int) -> None:
    store = await opened(directory)
    acknowledged = await fill(store, "vm-1", BIG, most)
    await store.close()
    (directory / "events.db-shm").unlink(missing_ok=True)
    with suppress(OSError), (directory / "ballast").open("wb") as file:
        while True:
            file.write(b"\x00" * 4096)
            file.flush()

    store = await opened(directory)
    assert len(await read_all(store)) == acknowledged
    try:
        await store.append(append_of(write("vm-2", 0, new("Filled", BIG * 10))))
    except StorageFull:
        pass
    else:
        raise AssertionError("the disk was not full")
    await store.append(append_of(write("vm-1", acknowledged), urgent=True))
    await store.close()
    reader = await open_reader(directory / "events.db")
    assert len(await read_all(reader)) == acknowledged + 1
    await reader.close()


async def a_log_on_a_read_only_disk_can_be_read(directory: Path) -> None:
    reader = await open_reader(directory / "events.db")
    assert await reader.head() == 6
    await reader.close()
    assert verify(directory / "events.db").problems == ()


CASES: dict[str, Callable[[Path], Coroutine[Any, Any, None]]] = {
    case.__name__: case
    for case in (
        a_commit_that_cannot_be_synced_is_in_doubt,
        a_full_disk_refuses_and_loses_nothing,
        a_node_can_be_started_on_a_full_disk,
        a_node_whose_disk_filled_up_can_be_started_again,
        a_log_on_a_read_only_disk_can_be_read,
    )
}

if __name__ == "__main__":
    die_with_parent()
    asyncio.run(CASES[sys.argv[1]](Path(sys.argv[2])))
