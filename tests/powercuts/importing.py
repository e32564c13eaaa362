"""A process that imports a log: `python -m tests.powercuts.importing LINES DIRECTORY`. It says `done LAST-SEQ`."""

from __future__ import annotations

import sys
from pathlib import Path

from aetherscale.eventstore.transfer import import_
from tests.powercuts.recorder import be_recorded
from tests.powercuts.writer import say
from tests.support.event_logs import NOW_US
from tests.support.log_writer import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    lines = Path(sys.argv[1]).read_bytes().splitlines(keepends=True)
    be_recorded()
    done = import_(lines, Path(sys.argv[2]) / "events.db", epoch="1111111111111111", now_us=NOW_US)
    say(f"done {done.events}")
