"""Damage anywhere in the files of a log: it is told, or everything reads back as it was written.

    python -m tests.damage.flips [--seed N] [--count N]

Flipped bits, torn and lost and misplaced blocks, files that are cut off, in the database, its write-ahead log and the
head file; of logs that were stopped tidily and of logs whose writer was killed, small and large. After each the log is
opened and read and proved, and then opened by a node, which writes to it.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from aetherscale.eventstore.archive import archive
from aetherscale.eventstore.integrity import PROVED_BYTES, verify
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.store import Accepted, StoredEvent, StoreError
from tests.powercuts.disk import seeded
from tests.support.event_logs import (
    EPOCH,
    NODE,
    NOW_US,
    SqliteWorld,
    append_of,
    files_of,
    filled,
    new,
    open_reader,
    read_all,
    write,
)
from tests.support.in_memory import in_memory

PARTS = ("events.db", "events.db-wal", "events.head")
PAGE_BYTES = 4096
LARGE_EVENT_BYTES = 800_000


@dataclass(frozen=True)
class Content:
    """What can be read of a log."""

    events: list[StoredEvent]
    accepted: list[Accepted | None]
    streams: list[Sequence[StoredEvent]]


@dataclass(frozen=True)
class Log:
    """A log before it is damaged: its files, those that it had some commits ago, and what was written to it."""

    name: str
    files: dict[str, bytes]
    earlier: dict[str, bytes]
    written: Content


async def content_of(reader: LogReader[StoredEvent], like: Sequence[StoredEvent] | None = None) -> Content:
    """All events of a log, and what some commands and streams in it came to. Raises `StoreError`."""
    events = await read_all(reader)
    like = like or events
    return Content(
        events,
        [await reader.accepted("default", command) for command in [*some(e.command_id for e in like), "never-sent"]],
        [await reader.read_stream(stream) for stream in some(e.stream for e in like)],
    )


def some(names: Iterable[str]) -> list[str]:
    """A few of the names, from the first on."""
    known = list(dict.fromkeys(names))
    return known[:: max(1, len(known) // 20)]


async def read_log(path: Path) -> Content:
    """What is in a log that is whole."""
    reader = await open_reader(path)
    try:
        return await content_of(reader)
    finally:
        await reader.close()


async def small_log(directory: Path, *, killed: bool) -> Log:
    """Some hundred events of a process of its own, which is then killed; or opened again and stopped tidily."""
    world = SqliteWorld(directory)
    await (await filled(world, 20)).close()
    earlier = files_of(directory)
    await asyncio.to_thread(write_and_be_killed, world.path)
    if not killed:
        await (await world.open()).close()
    files = files_of(directory)
    return Log("small, killed" if killed else "small, at rest", files, earlier, await read_log(world.path))


async def sealed_log(directory: Path) -> Log:
    """A log most of which is in segments."""
    rest = await small_log(directory, killed=False)
    path = directory / "events.db"
    await asyncio.to_thread(archive, path, lambda reading: reading.head() - 100, segment_events=50)
    return Log("small, sealed", files_of(directory), rest.files, await read_log(path))


def write_and_be_killed(path: Path) -> None:
    """A process writes to a log until its end by SIGKILL."""
    arguments = ["tests.support.log_writer", str(path), "4", "run"]
    with subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(120):
            assert process.stdout.readline(), "the writer has ended by itself"
        process.kill()


async def large_log(directory: Path) -> Log:
    """A log that is too large to be proved before a node serves, with some of it in the write-ahead log."""
    world = SqliteWorld(directory)
    chance = seeded("large")
    earlier: dict[str, bytes] = {}
    files: dict[str, bytes] = {}
    for part in (PROVED_BYTES // LARGE_EVENT_BYTES + 2, 4):
        earlier = files_of(directory)
        store = await world.open()
        for number in range(part):
            payload = chance.randbytes(LARGE_EVENT_BYTES if part > 4 else 2000)
            command = f"large-{part}-{number}"
            await store.append(append_of(write(command, 0, new("Made", payload)), command_id=command, body=command))
        files = files_of(directory)
        await store.close()
    assert len(files["events.db"]) > PROVED_BYTES
    return Log("large, killed", files, earlier, await read_log(world.path))


def flip(content: bytearray, chance: Random, before: bytes) -> None:
    """One bit, or some within a few bytes."""
    place = _place(len(content), chance)
    for at in range(place, min(len(content), place + chance.choice([1, 1, 1, 8]))):
        content[at] ^= 1 << chance.randrange(8)


def cut(content: bytearray, chance: Random, before: bytes) -> None:
    """The end is missing."""
    unit = chance.choice([1, 512, PAGE_BYTES])
    del content[_place(len(content), chance) // unit * unit :]


def blank(content: bytearray, chance: Random, before: bytes) -> None:
    """A sector or a page reads as zeros."""
    unit = chance.choice([512, PAGE_BYTES])
    first = _place(len(content), chance) // unit * unit
    content[first : first + unit] = bytes(len(content[first : first + unit]))


def misplace(content: bytearray, chance: Random, before: bytes) -> None:
    """A page stands where another one was."""
    first, other = (_place(len(content), chance) // PAGE_BYTES * PAGE_BYTES for _ in range(2))
    size = min(len(content) - first, len(content) - other, PAGE_BYTES)
    content[first : first + size] = content[other : other + size]


def lose(content: bytearray, chance: Random, before: bytes) -> None:
    """The last write to a page, or to all of the file, was lost by the disk."""
    if chance.random() < 0.2:
        content[:] = before
    else:
        first = _place(len(content), chance) // PAGE_BYTES * PAGE_BYTES
        old = before[first : first + PAGE_BYTES]
        content[first : first + len(old)] = old


Kind = Callable[[bytearray, Random, bytes], None]
KINDS: list[Kind] = [flip, flip, flip, cut, blank, misplace, lose]


def _place(size: int, chance: Random) -> int:
    """Anywhere in a file; often near its beginning, where its form is, or near its end."""
    near = min(size, PAGE_BYTES)
    return chance.choice(
        [chance.randrange(size), chance.randrange(size), chance.randrange(near), size - 1 - chance.randrange(near)]
    )


TOLD = {"open", "read", "verify", "equal"}


async def told(path: Path, written: Content) -> str:
    """How damage is told: `open`, `read` or `verify`; or `equal`, where all reads back as it was; else `SILENT`."""
    try:
        reader = await open_reader(path)
    except StoreError:
        return "open"
    try:
        found = await content_of(reader, written.events)
    except StoreError:
        return "read"
    finally:
        await reader.close()
    if verify(path).problems:
        return "verify"
    return "equal" if found == written else "SILENT"


async def told_to_a_node(path: Path, written: Content) -> str:
    """The same of a node, which opens the log for writing and adds to it."""
    try:
        store = await open_store(path, node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=0)
    except StoreError:
        return "open"
    try:
        await store.append(append_of(write("vm-served", 0)))
        found = await content_of(store, written.events)
    except StoreError:
        return "read"
    finally:
        with suppress(StoreError):
            await store.close()
    if verify(path).problems:
        return "verify"
    found.events.pop()
    return "equal" if found == written else "SILENT"


async def damage(log: Log, directory: Path, chance: Random, tally: Counter[tuple[str, str, str, str]]) -> list[str]:
    """Damage a log once; what is wrong with how that was told."""
    part = chance.choice([part for part in PARTS if log.files.get(part)])
    kind = chance.choice(KINDS)
    content = bytearray(log.files[part])
    kind(content, chance, log.earlier.get(part, b""))
    damaged = bytes(content)
    if damaged == log.files[part]:
        return await damage(log, directory, chance, tally)
    answers = []
    for look in (told, told_to_a_node):
        for left in directory.iterdir():
            left.unlink()
        for name, whole in log.files.items():
            (directory / name).write_bytes(damaged if name == part else whole)
        try:
            answers.append(await look(directory / "events.db", log.written))
        except Exception as raw:  # noqa: BLE001 - whoever meets it is told of no damage
            answers.append(f"RAW {raw!r}")
    reader, node = answers
    tally[log.name, part, kind.__name__, reader] += 1
    faults = []
    if not {*answers} <= TOLD or (reader == "equal" and node != "equal"):
        faults.append(f"{log.name}, {part}, {kind.__name__}: a reader says {reader}, a node {node}")
    return faults


async def logs(directory: Path, *, large: bool) -> list[Log]:
    """The logs that are damaged."""
    made = []
    for name in ("killed", "rest", "sealed", "large"):
        (directory / name).mkdir(parents=True)
    made.append(await small_log(directory / "killed", killed=True))
    made.append(await small_log(directory / "rest", killed=False))
    made.append(await sealed_log(directory / "sealed"))
    if large:
        made.append(await large_log(directory / "large"))
    return made


async def try_damage(seed: int, count: int, directory: Path) -> tuple[Counter[tuple[str, str, str, str]], list[str]]:
    """So many damages; how they were told, and what is wrong with that. One in fifty is of a large log."""
    made = await logs(directory / "logs", large=count >= 50)
    damaged = directory / "damaged"
    damaged.mkdir()
    tally: Counter[tuple[str, str, str, str]] = Counter()
    faults: list[str] = []
    for number in range(count):
        log = made[3] if number % 50 == 49 else made[number % 3]
        found = await damage(log, damaged, seeded(f"{seed}-{number}"), tally)
        faults.extend(f"seed {seed}, number {number}: {fault}" for fault in found)
    return tally, faults


def table(tally: Counter[tuple[str, str, str, str]]) -> str:
    """How damage was told, by log and file."""
    columns = ("open", "read", "verify", "equal")
    lines = [f"{'log':16}{'file':16}" + "".join(f"{column:>9}" for column in columns)]
    for name, part in sorted({(name, part) for name, part, _, _ in tally}):
        counts = [
            sum(n for (log, file, _, said), n in tally.items() if (log, file, said) == (name, part, column))
            for column in columns
        ]
        lines.append(f"{name:16}{part:16}" + "".join(f"{count:9,}" for count in counts))
    return "\n".join(lines)


def main() -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="flips", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000)
    given = parser.parse_args()
    with in_memory() as directory:
        tally, faults = asyncio.run(try_damage(given.seed, given.count, Path(directory)))
    print(table(tally))
    for fault in faults[:20]:
        print(fault)
    equal = sum(count for (*_, said), count in tally.items() if said == "equal")
    print(f"{tally.total():,} damages, {tally.total() - equal:,} told, {equal:,} without effect, {len(faults):,} wrong")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
