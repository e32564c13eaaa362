"""Sees that the state directory of a running node is no longer where it was: moved, removed, or covered by a mount.

The log, its lock and a nats-server's files are held open and move with the directory; disks, sockets and directories of
VMs are found by their paths. A node that went on would take whatever is at its path now for its own, as the guests of
another node that was started there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from aetherscale.eventstore.store import StoreError

LOOK_S: Final = 1.0


class Moved(StoreError):
    """The state directory is no longer at its path. Nothing that is there now was touched."""


async def guard(state_dir: Path, look_s: float = LOOK_S) -> Moved:
    """Wait until the directory is no longer at its path, which may be for ever. Raises OSError where it never was."""
    before = _identity(state_dir)
    while True:
        await asyncio.sleep(look_s)
        try:
            now = _identity(state_dir)
        except (FileNotFoundError, NotADirectoryError):
            return Moved(_text(state_dir, "is no longer there"))
        except OSError:
            continue  # a fault of the file system, which says nothing of what is there
        if now != before:
            return Moved(_text(state_dir, "was moved away, and something else is in its place"))


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino


def _text(state_dir: Path, what: str) -> str:
    return (
        f"the state directory {state_dir} {what}, so this node ends; virtual machines keep running. "
        "Stop a node before its directory is moved or restored"
    )
