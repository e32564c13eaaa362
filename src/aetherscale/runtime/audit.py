"""The proof of a log that is too large to be proved before a node serves: it runs beside the node, once each start.

It is `aetherscale log verify` in a process of its own with the lowest priority, so that neither the loop nor a guest
waits for it. What it finds is an error of the log like any other: the node stops writing and ends, and guests run on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.eventstore.integrity import Verification
from aetherscale.eventstore.store import Damaged

log = logging.getLogger(__name__)

LOWEST_PRIORITY: Final = 19
"""See setpriority(2)."""


async def audit(state_dir: Path) -> Damaged | None:
    """Prove the log of a state directory; None where all of it is as it was written, or where that cannot be known.

    Takes some seconds of one CPU for each 100,000 events. Cancelled, it ends the process. Raises OSError.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aetherscale", "--state-dir", str(state_dir), "--json", "log", "verify"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
        said, complained = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        found = msgspec.json.decode(said, type=Verification)
    except msgspec.MsgspecError:
        said_last = (complained or said).decode(errors="replace").strip()[-400:]
        log.warning("the log could not be proved: `log verify` ended with %d: %s", process.returncode, said_last)
        return None
    if found.problems:
        first = found.problems[0]
        return Damaged(first.message, first.seq)
    log.info("the log is proved: %d events are as they were written", found.events)
    return None
