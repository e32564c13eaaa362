"""On a host with control groups of version 2: what is told of a process that takes too much memory, and of another."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Final

from aetherscale.actors.compute.qemu import supervision
from aetherscale.actors.compute.qemu.supervision import Limits, Supervisor
from aetherscale.processes import launch

TAKES_TOO_MUCH: Final = "held = []\nwhile True:\n    held.append(bytearray(1 << 20))\n"
IS_KILLED: Final = "import os; os.kill(os.getpid(), 9)"


def main() -> None:
    """One takes too much, one is killed by hand, one takes too much again."""
    supervisor = asyncio.run(supervision.choose("systemd"))
    for script, is_told in ((TAKES_TOO_MUCH, True), (IS_KILLED, False), (TAKES_TOO_MUCH, True)):
        number = os.WTERMSIG(end_of(supervisor, script))
        why = supervisor.why_killed()
        print(f"signal {number}: {why or 'nobody can tell'}", flush=True)
        assert number == signal.SIGKILL
        assert bool(why) == is_told


def end_of(supervisor: Supervisor, script: str) -> int:
    """The status with which a script of Python ends under the supervisor."""
    with Path("/dev/null").open("wb") as errors:
        pid = launch.spawn(
            ["/usr/bin/python3", "-c", script],
            launch.Jail(None, drops_bounds=False),
            Path("/"),
            errors.fileno(),
            [],
            around=supervisor.around("0123456789abcdef", 1, Limits(memory_mib=1, cpus=1)),
            environment=supervisor.environment,
        )
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    main()
