"""Logs to test on: the fake in memory and the real file, opened, closed and opened again; and short ways to append."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from aetherscale.eventstore.archive import archive
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.memory import MemoryLog, open_memory
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.sqlite import open_access, open_store
from aetherscale.eventstore.store import AS_STORED, Append, CommandKey, NewEvent, StoredEvent, StreamWrite

NODE = "host1"
EPOCH = "00ff00ff00ff00ff"
NOW_US = 1_767_225_600_000_000
RESERVE_BYTES = 64 * 1024


async def open_reader(path: Path) -> LogReader[StoredEvent]:
    """A log in a file, to be read as it stands there."""
    return LogReader(await open_access(path), AS_STORED)


class LogWorld(Protocol):
    """What a log is kept on."""

    async def open(self) -> LogStore:
        """A store that writes to it."""
        ...

    def archive(self, keep: int) -> None:
        """Seal all but the newest events, where that can be done; nobody may have it open."""
        ...


class MemoryWorld:
    """A log in memory."""

    def __init__(self) -> None:
        self.log = MemoryLog(NODE, EPOCH, "0.1.0")

    async def open(self) -> LogStore:
        return await open_memory(self.log)

    def archive(self, keep: int) -> None:
        """Nothing is sealed in memory."""


class SqliteWorld:
    """A log in a file."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "events.db"

    async def open(self) -> LogStore:
        return await open_store(
            self.path, node=NODE, epoch=EPOCH, now_us=NOW_US, program="0.1.0", reserve_bytes=RESERVE_BYTES
        )

    def archive(self, keep: int) -> None:
        """Seal all but the newest events, in segments that are as small as can be."""
        archive(self.path, lambda reading: reading.head() - keep, segment_events=1)


def new(kind: str = "Happened", data: bytes = b"\x80", schema: int = 1) -> NewEvent:
    return NewEvent(kind, schema, data)


def write(stream: str, expected_version: int | None, *events: NewEvent) -> StreamWrite:
    return StreamWrite(stream, expected_version, events or (new(),))


def append_of(
    *writes: StreamWrite,
    command_id: str = "command-1",
    tenant: str = "default",
    time_us: int = NOW_US,
    body: str | None = None,
    urgent: bool = False,
) -> Append:
    """An append; with a `body` it is a command whose repeat is recognised."""
    key = None if body is None else CommandKey(tenant, command_id, digest_of(body))
    return Append(
        writes=writes,
        time_us=time_us,
        tenant=tenant,
        actor="user:test",
        command_id=command_id,
        correlation_id="correlation-1",
        causation_id=None,
        key=key,
        urgent=urgent,
    )


def digest_of(body: str) -> bytes:
    return hashlib.sha256(body.encode()).digest()


async def read_all(store: LogReader[StoredEvent], page: int = 1000) -> list[StoredEvent]:
    """Every event, read in pages."""
    events: list[StoredEvent] = []
    while found := await store.read(len(events), page):
        events.extend(found)
    return events


async def take(pages: AsyncIterator[Sequence[StoredEvent]], count: int) -> list[StoredEvent]:
    """The first events of a subscription."""
    events: list[StoredEvent] = []
    while len(events) < count:
        events.extend(await anext(pages))
    return events


async def filled(world: LogWorld, commits: int = 3) -> LogStore:
    """An open log with as many commits, each of two events and a command."""
    store = await world.open()
    head = await store.head()
    for number in range(head, head + commits):
        await store.append(
            append_of(
                write(f"vm-{number}", 0, new("Made", bytes(range(200)))),
                write("vm-common", await version_of(store, "vm-common"), new("Grown")),
                command_id=f"command-{number}",
                body=f"body-{number}",
            )
        )
    return store


async def version_of(store: LogReader[StoredEvent], stream: str) -> int:
    return len(await store.read_stream(stream))


def files_of(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}
