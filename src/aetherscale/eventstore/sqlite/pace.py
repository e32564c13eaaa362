"""Whether a commit may keep the event loop waiting. It may where that is sure to be short; that is not known
beforehand, so it is learned: a disk that has been quick many times in a row is taken for quick until it is slow once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aetherscale.eventstore.store import Append

QUICK_S: Final = 0.002
"""A commit that takes no longer than this may keep the loop waiting: handing it to a thread and back costs a tenth."""
PROVEN: Final = 8
"""How many commits in a row have to have been quick."""
FEW_EVENTS: Final = 16
FEW_BYTES: Final = 32 * 1024


class Pace:
    """How quick the disk has been."""

    def __init__(self) -> None:
        self._quick = 0

    def took(self, seconds: float) -> None:
        """A commit took so long."""
        self._quick = self._quick + 1 if seconds <= QUICK_S else 0

    def may_wait(self, appends: Sequence[Append]) -> bool:
        """Whether the loop may wait for these: one small append on a disk that is proven to be quick.

        Several that wait together are those of a busy loop, which has other things to do meanwhile.
        """
        if len(appends) != 1 or self._quick < PROVEN:
            return False
        events = [event for write in appends[0].writes for event in write.events]
        return len(events) <= FEW_EVENTS and sum(len(event.data) for event in events) <= FEW_BYTES
