"""A process that writes to a log for a while, several tasks at once, and says what it was told to write and what was
acknowledged.

    python -m tests.powercuts.writer DIRECTORY RUN ENDING [SYNCHRONOUS]

It says `send COMMAND` before an append, and `done LAST-SEQ` of what may not be lost any more: what was acknowledged,
and what it found in the log when it began, since a node acts on that. Run again it sends the same commands again.
ENDING is `close` or `kill`. The log checkpoints and syncs its head far more often than a node's does, so that few
events see many of both. SYNCHRONOUS is for the control alone: a log that waits for the disk less than ours does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from aetherscale.eventstore import groupcommit
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.projections import Snapshots, load
from aetherscale.eventstore.sqlite import open_store, opening, walroom
from aetherscale.eventstore.sqlite.snapshots import SqliteSnapshots
from aetherscale.eventstore.store import AlreadyAccepted
from aetherscale.kernel.messages import Envelope, Recorded
from tests.powercuts.disk import seeded
from tests.powercuts.ledger import CODEC, EVENTS_PER_APPEND, LEDGER, Paid, digest_of
from tests.powercuts.recorder import be_recorded
from tests.support.event_logs import EPOCH, NODE, NOW_US
from tests.support.log_writer import die_with_parent

TASKS = 6
ROUNDS = 12
CHECKPOINT_PAGES = 40
SYNC_HEAD_S = 0.005
ROOM_BYTES = 64 * 1024
SNAPSHOT_EVENTS = 40
RESERVE_BYTES = 8192


def say(text: str) -> None:
    os.write(1, text.encode())


async def write_some(directory: Path, run: str, ending: str, synchronous: str = "") -> None:
    store = await open_store(
        directory / "events.db", node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=RESERVE_BYTES
    )
    if synchronous:
        await set_synchronous(store, synchronous)
    log = EventLog(store, CODEC)
    kept = await SqliteSnapshots.open(directory / "snapshots.db")
    [state], position = await load([LEDGER], log, kept)
    say(f"done {position}")
    snapshots = Snapshots(kept, log.epoch, position, every=SNAPSHOT_EVENTS)
    snapshots.watch(LEDGER, lambda: state)

    def committed(recorded: Sequence[Recorded]) -> None:
        nonlocal state
        state = LEDGER.fold(state, recorded)
        snapshots.committed(recorded)

    log.on_commit(committed)
    saving = asyncio.get_running_loop().create_task(snapshots.run())
    async with asyncio.TaskGroup() as group:
        for task in range(TASKS):
            group.create_task(pay(log, f"{run}-{task}", seeded(f"{run}-{task}")))
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    saving.cancel()
    await asyncio.gather(saving, return_exceptions=True)
    await snapshots.save()
    await kept.close()
    await log.close()


async def pay(log: EventLog, stream: str, chance: Random) -> None:
    """Append to one stream, small things and large ones, some of them twice."""
    for number in range(ROUNDS):
        command_id = f"{stream}-{number}"
        notes = [chance.randbytes(chance.choice([10, 200, 3000])) for _ in range(EVENTS_PER_APPEND)]
        writes = [Write(stream, number * EVENTS_PER_APPEND, tuple(map(Paid, notes)))]
        envelope: Envelope[Any] = Envelope(None, "default", "user:test", command_id, "correlation", None, NOW_US)
        for _ in range(chance.choice([1, 1, 1, 2])):
            say(f"send {command_id}")
            try:
                recorded = await log.append(writes, envelope, digest=digest_of(command_id))
                say(f"done {recorded[-1].seq}")
            except AlreadyAccepted as repeat:
                say(f"done {repeat.accepted.last_seq}")


async def set_synchronous(store: Any, synchronous: str) -> None:
    writer = store._backend._writer
    await writer.run(lambda: writer.plain.execute(f"PRAGMA synchronous = {synchronous}"))


if __name__ == "__main__":
    die_with_parent()
    opening.WAL_AUTOCHECKPOINT_PAGES = CHECKPOINT_PAGES  # type: ignore[misc]
    walroom.STEP_BYTES, walroom.LEAST_BYTES = ROOM_BYTES, ROOM_BYTES // 2  # type: ignore[misc]
    groupcommit.SYNC_HEAD_S = SYNC_HEAD_S  # type: ignore[misc]
    be_recorded()
    asyncio.run(write_some(Path(sys.argv[1]), *sys.argv[2:]))
