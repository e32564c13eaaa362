"""A process that writes to a log until it is killed, and says what has been acknowledged: one command id a line.

    python -m tests.support.log_writer PATH TASKS RUN

It has no clock and no randomness of its own: ids are RUN, task and number.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path

from aetherscale.eventstore.sqlite import open_store
from tests.support.event_logs import EPOCH, NODE, NOW_US, RESERVE_BYTES, append_of, new, write

PR_SET_PDEATHSIG = 1


async def write_for_ever(path: Path, tasks: int, run: str) -> None:
    """Each task appends to streams of its own, two events at a time; some commands come twice."""
    store = await open_store(path, node=NODE, epoch=EPOCH, now_us=NOW_US, reserve_bytes=RESERVE_BYTES)

    async def keep_writing(task: int) -> None:
        number = 0
        while True:
            number += 1
            command = f"{run}-{task}-{number}"
            append = append_of(
                write(f"vm-{command}", 0, new("A", command.encode()), new("B", b"\x00" * 200)),
                command_id=command,
                body=command,
            )
            await store.append(append)
            os.write(1, f"{command}\n".encode())

    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            group.create_task(keep_writing(task))


def die_with_parent() -> None:
    """Leave nothing behind when the test run is killed; prctl(2)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(write_for_ever(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
