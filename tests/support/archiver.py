"""Seals a log in a process that dies before its N-th statement: `python -m tests.support.archiver LOG N`.

With N of 0 it does not die, and prints how many statements there were.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from aetherscale.eventstore import archive as archiving
from tests.support.log_writer import die_with_parent


def main(path: Path, fatal: int) -> int:
    """Seal all but the last commits, a few segments at a time; how many statements that took."""
    statements = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal statements
        if event == "c_call" and argument.__name__ in ("execute", "executemany"):
            statements += 1
            if statements == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    # Production code is not to know of it: statements are counted from outside, as a debugger would.
    vars(archiving).update(SEGMENTS_AT_ONCE=2, prove=lambda path: None)
    sys.setprofile(watch)
    archiving.archive(path, lambda reading: reading.head() - 6, segment_events=10)
    sys.setprofile(None)
    return statements


if __name__ == "__main__":
    die_with_parent()
    print(main(Path(sys.argv[1]), int(sys.argv[2])))
