"""A process that seals most of a log: `python -m tests.powercuts.sealing DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from aetherscale.eventstore.archive import archive
from tests.powercuts.recorder import be_recorded
from tests.support.log_writer import die_with_parent

KEPT_EVENTS = 20

if __name__ == "__main__":
    die_with_parent()
    be_recorded()
    archive(Path(sys.argv[1]) / "events.db", lambda reading: reading.head() - KEPT_EVENTS, segment_events=30)
