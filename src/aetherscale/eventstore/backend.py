"""The small port beneath a store: commit a batch, and answer questions. What it stands on may be a file or a list.

It does not know who waits for a batch, nor who follows the log; that is `groupcommit.py`, which stands above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aetherscale.eventstore.chain import Head
from aetherscale.eventstore.store import Access, Append, StoredEvent, StoreError

Outcome = Sequence[StoredEvent] | StoreError
"""The result of one append: its events, or why it was refused while others of the batch were written."""


class Backend(Access, Protocol):
    """One log that is written to, by one caller at a time.

    After an `InDoubt` or `Damaged`, `close` leaves the files as they are.
    """

    async def commit(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        """Write a batch in one transaction; when it returns, all of it is durable. One outcome for each append.

        When it raises, nothing of the batch is in the log (`StorageFull`, or ValueError for what cannot be stored),
        or it is unknown whether it is (`InDoubt`), or nothing may ever be written again (`Damaged`).
        """
        ...

    async def sync_head(self) -> None:
        """Make durable what no acknowledgement waits for. Called within a second of a commit, and before the end."""
        ...

    def durable_head(self) -> Head:
        """The end of the chain as of the last commit that returned. To be asked while no commit is on its way."""
        ...
