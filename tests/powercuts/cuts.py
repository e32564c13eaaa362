"""Power cuts under the real log: is all that was acknowledged there, and nothing that was never sent?

    python -m tests.powercuts.cuts [--seed N] [--cuts N] [--synchronous NORMAL]

A process that writes is recorded; then the power fails at any of its steps, in any of the ways of `disk.py`, and what
is left is opened by the real store. One of these states is what the next process finds, so that cuts follow cuts.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from aetherscale.eventstore.integrity import verify
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.projections import Snapshot, load, replay
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.sqlite.snapshots import SqliteSnapshots
from aetherscale.eventstore.store import StoredEvent, StoreError
from aetherscale.kernel.messages import Envelope
from tests.powercuts.disk import Disk, Names, Said, seeded
from tests.powercuts.ledger import CODEC, EVENTS_PER_APPEND, LEDGER, Paid, digest_of
from tests.powercuts.recorder import Recording, record
from tests.support.event_logs import EPOCH, NODE, NOW_US, open_reader, read_all
from tests.support.in_memory import in_memory

GENERATIONS = 3
"""How often processes write to one log, each time but the first upon a power cut."""

CUTS_PER_HISTORY = 300


@dataclass
class Account:
    """What so many power cuts came to."""

    cuts: int = 0
    acknowledged: int = 0
    """Events that were acknowledged when the power failed, over all cuts."""
    lost: int = 0
    """Those of them that are not there any more."""
    unacknowledged: int = 0
    """Events that nobody was told of, and that are there."""
    faults: list[str] = field(default_factory=list)

    def add(self, other: Account) -> None:
        self.cuts += other.cuts
        self.acknowledged += other.acknowledged
        self.lost += other.lost
        self.unacknowledged += other.unacknowledged
        self.faults += other.faults

    def __str__(self) -> str:
        return (
            f"{self.cuts:,} power cuts, {self.acknowledged:,} acknowledged events, {self.lost:,} lost, "
            f"{self.unacknowledged:,} there that nobody was told of, {len(self.faults):,} faults"
        )


@dataclass(frozen=True)
class Cut:
    """A power cut: what is left, and what had been said by then."""

    place: str
    files: dict[str, bytes]
    acknowledged: int
    """The last event that somebody was told of."""
    sent: frozenset[str]
    """The ids of all commands that somebody sent."""


NOTHING = Cut("the beginning", {}, 0, frozenset())


def cuts_of(recording: Recording, told: Cut, count: int, chance: Random, name: str) -> Iterator[Cut]:
    """Power cuts at so many places of a recording, in order; the last one is after its end.

    Half of them are where names change or a process begins, which happens seldom.
    """
    rare = [place for place, step in enumerate(recording.steps) if isinstance(step, Names)]
    places = [chance.choice(rare) + chance.randrange(6) for _ in range(count // 4)]
    places += [chance.choice(recording.began) + chance.randrange(30) for _ in range(count // 4)]
    places += [chance.randrange(len(recording.steps)) for _ in range(count - 1 - len(places))]
    for place in sorted(min(place, len(recording.steps)) for place in [*places, len(recording.steps)]):
        yield cut_at(recording, place, chance.getrandbits(32), told, name)


def cut_at(recording: Recording, place: int, seed: int, told: Cut = NOTHING, name: str = "") -> Cut:
    """A power cut before a step; what the disk makes of it comes from the seed. `told` is what had been said before."""
    acknowledged, sent = told.acknowledged, set(told.sent)
    disk = Disk(recording.before)
    for step in recording.steps[:place]:
        disk.do(step)
        if isinstance(step, Said):
            what, value = step.text.split()
            if what == "send":
                sent.add(value)
            else:
                acknowledged = max(acknowledged, int(value))
    where = f"{name} before step {place} of {len(recording.steps)}, disk {seed}"
    return Cut(where, disk.after_power_cut(seeded(seed)), acknowledged, frozenset(sent))


def put(files: dict[str, bytes], directory: Path, chance: Random) -> None:
    """Make a directory what the disk holds. Of the shared memory anything may be left."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
        if name.endswith(".db") and chance.random() < 0.3:
            (directory / f"{name}-shm").write_bytes(chance.randbytes(chance.choice([0, 100, 32768])))


async def after_a_cut(cut: Cut, directory: Path, written: Sequence[StoredEvent]) -> tuple[int, list[str]]:
    """How many events are there, and what is wrong; `written` is the whole log, as it was without the cut."""
    path = directory / "events.db"
    try:
        store = await open_store(path, node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=4096)
    except StoreError as refused:
        return verify(path).events if path.exists() else 0, [f"the log is refused: {refused}"]
    log = EventLog(store, CODEC)
    faults = []
    try:
        events = await read_all(store)
        there = len(events)
        if there < cut.acknowledged:
            faults.append(f"of {cut.acknowledged} acknowledged events {there} are there")
        if events != list(written[:there]):
            faults.append("what is there is not what was written")
        if there % EVENTS_PER_APPEND:
            faults.append(f"{there} events: an append is there in part")
        if never_sent := {event.command_id for event in events} - cut.sent:
            faults.append(f"nobody has sent {never_sent}")
        for event in written[max(0, there - 10 * EVENTS_PER_APPEND) : there + 10 * EVENTS_PER_APPEND]:
            accepted = await store.accepted(event.tenant, event.command_id)
            if (accepted is not None) != (event.seq <= there):
                faults.append(f"command {event.command_id} is event {event.seq} of {there}, accepted is {accepted}")
        faults.extend(await faults_of_snapshots(log, directory / "snapshots.db"))
        writes = [Write("after-the-cut", 0, (Paid(b"one"),))]
        envelope: Envelope[Any] = Envelope(None, "default", "user:test", "after-the-cut", "correlation", None, NOW_US)
        await log.append(writes, envelope, digest=digest_of("after-the-cut"))
    finally:
        await log.close()
    proved = verify(path, CODEC)
    if proved.problems or proved.events != there + 1:
        faults.append(f"{proved.events} events are proved, {there + 1} were written: {proved.problems}")
    return there, faults


async def faults_of_snapshots(log: EventLog, path: Path) -> list[str]:
    """Whether snapshots are what the log says, or not there, and whether more can be kept."""
    kept = await SqliteSnapshots.open(path)
    try:
        (loaded, _), truth = await load([LEDGER], log, kept), await replay(LEDGER, log)
        if loaded != [truth[0]]:
            return [f"the snapshots say {loaded}, the log says {truth}"]
        state, position = truth
        if position:
            await kept.save(LEDGER.name, LEDGER.fingerprint, log.epoch, Snapshot(position, LEDGER.encode(state)))
            newest, *_ = await kept.snapshots(LEDGER.name, LEDGER.fingerprint, log.epoch)
            if newest.position != position:
                return [f"the snapshot of event {position} was not kept, {newest.position} is the newest"]
    finally:
        await kept.close()
    return []


async def written_by(recording: Recording, directory: Path) -> list[StoredEvent]:
    """The whole of a log that lost no power."""
    put(recording.disk().as_it_is(), directory, seeded(0))
    reader = await open_reader(directory / "events.db")
    try:
        return await read_all(reader)
    finally:
        await reader.close()


async def try_history(seed: int, count: int, directory: Path, synchronous: str = "") -> Account:
    """The history of one log: two processes, the first often killed; power cuts; two more upon one of them."""
    account = Account()
    chance = seeded(seed)
    left = NOTHING
    running, after = directory / "running", directory / "after"
    for generation in range(GENERATIONS):
        put(left.files, running, chance)
        recording = Recording(left.files, [], [])
        run = f"{seed}-{generation}"
        for kill_at, ending in ((chance.choice([None, chance.randrange(600)]), "kill"), (None, "close")):
            arguments = ["tests.powercuts.writer", str(running), run, ending, *([synchronous] if synchronous else [])]
            await asyncio.to_thread(record, arguments, running, recording, kill_at)
        written = await written_by(recording, after)
        cuts = list(cuts_of(recording, left, count // GENERATIONS, chance, run))
        for cut in cuts:
            put(cut.files, after, chance)
            there, faults = await after_a_cut(cut, after, written)
            account.cuts += 1
            account.acknowledged += cut.acknowledged
            account.lost += max(0, cut.acknowledged - there)
            account.unacknowledged += max(0, there - cut.acknowledged)
            account.faults.extend(f"{cut.place}: {fault}" for fault in faults)
        if account.faults:
            break
        left = chance.choice(cuts)
    return account


def main() -> int:
    parser = argparse.ArgumentParser(prog="powercuts", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="the first history")
    parser.add_argument("--cuts", type=int, default=10_000)
    parser.add_argument("--synchronous", default="", choices=["NORMAL", "OFF"], help="the control: has to lose events")
    given = parser.parse_args()
    logging.disable()  # of the snapshots that are made anew
    total = Account()
    seed = given.seed
    while total.cuts < given.cuts:
        with in_memory() as directory:
            account = asyncio.run(try_history(seed, CUTS_PER_HISTORY, Path(directory), given.synchronous))
        for fault in account.faults[:5]:
            print(f"seed {seed}: {fault}")
        total.add(account)
        seed += 1
        if sys.stdout.isatty() or total.cuts >= given.cuts:
            print(f"seeds {given.seed} to {seed - 1}: {total}", end="\n" if total.cuts >= given.cuts else "\r")
    return 1 if total.faults else 0


if __name__ == "__main__":
    sys.exit(main())
