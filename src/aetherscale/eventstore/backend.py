"""The small port beneath a store: commit a batch, read pages. What it stands on may be a file or a list.

It does not know who waits for a batch, nor who follows the log; that is `groupcommit.py`, which stands above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from aetherscale.eventstore.chain import Head
from aetherscale.eventstore.store import PAGE, Accepted, Append, Make, StoredEvent, StoredType, StoreError

T = TypeVar("T")

Outcome = Sequence[StoredEvent] | StoreError
"""What became of one append: its events, or why it was refused while its neighbours were written."""


class Backend(Protocol):
    """One log, one caller at a time."""

    node: str
    epoch: str

    async def commit(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        """Write a batch in one transaction; when it returns, all of it is durable. One outcome for each append.

        When it raises, nothing of the batch is in the log (`StorageFull`, or ValueError for what cannot be stored),
        or it is unknown whether it is (`InDoubt`), or nothing may ever be written again (`Damaged`).
        """
        ...

    async def settle(self) -> None:
        """Make durable what no acknowledgement waits for. Called within a second of a commit, and before the end."""
        ...

    def durable_head(self) -> Head:
        """The end of the chain as of the last commit that returned. To be asked while no commit is on its way."""
        ...

    async def head(self) -> int:
        """As in `Reader`."""
        ...

    async def read(self, after: int, limit: int = PAGE, types: Sequence[str] | None = None) -> Sequence[StoredEvent]:
        """As in `Reader`."""
        ...

    async def read_as(
        self, make: Make[T], after: int, limit: int = PAGE, types: Sequence[str] | None = None
    ) -> Sequence[T]:
        """As in `Reader`."""
        ...

    async def read_stream(self, stream: str, after_version: int = 0) -> Sequence[StoredEvent]:
        """As in `Reader`."""
        ...

    async def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """As in `Reader`."""
        ...

    async def types(self) -> Sequence[StoredType]:
        """As in `Reader`."""
        ...

    async def position_at(self, time_us: int) -> int:
        """As in `Reader`."""
        ...

    async def close(self) -> None:
        """Let go of everything. After an `InDoubt` or `Damaged` the files are left as they are."""
        ...
