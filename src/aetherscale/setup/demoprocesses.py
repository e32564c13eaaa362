"""The processes of the demo: those that work in its directory, whoever started them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

PAUSE_S: Final = 0.2
ROUNDS: Final = 50
"""How often those are killed that are there: one that was found may have started another before its end."""


def processes_in(directory: Path) -> Mapping[int, Path]:
    """The processes that work in a directory or have it on their command line, without this one and zombies."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            cwd = Path(os.readlink(entry / "cwd"))
            named = str(directory).encode() in (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if named or cwd.is_relative_to(directory):
            found[int(entry.name)] = cwd
    return found


def kill_all_in(directory: Path) -> None:
    """Kill them until there are none, or they do not end."""
    for _ in range(ROUNDS):
        running = processes_in(directory)
        if not running:
            return
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)
