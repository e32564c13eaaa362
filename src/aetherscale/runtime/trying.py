"""Requests with a condition, and requests that are only tried: decided, and not recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.messages import Event
from aetherscale.kernel.registry import Aggregate
from aetherscale.kernel.replies import Chunk, result


def require_revision(aggregate: Aggregate[Any] | None, call: Call) -> None:
    """Raises `Refused` (precondition failed) where an aggregate is at none of the revisions that a call is for.

    Asked in the mailbox, so nothing comes between this and the append, which is conditional on the same version.
    """
    if call.revisions and (aggregate is None or aggregate.tag not in call.revisions):
        raise Refused(
            Reason.PRECONDITION_FAILED,
            "it has changed since: it is at another revision than the request is for, and nothing was done",
            remedy="read it again, then decide anew",
            details={"revision": aggregate.version if aggregate else 0},
        )


async def tried(deciding: asyncio.Future[Sequence[Event]], kind: str, aggregate_id: str) -> AsyncIterator[Chunk]:
    """The answer to a request that was only tried: the events that it would lead to."""
    events = [{"type": type(each).__name__, "data": each} for each in await asyncio.shield(deciding)]
    yield result({f"{kind}-id": aggregate_id, "dry-run": True, "events": events})
