"""An operation: a command that was accepted, as the log alone tells what became of it. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from aetherscale.kernel.errors import Refused

OperationStatus = Literal["running", "done", "failed"]


class Operation(Struct, frozen=True):
    """A command and its end. `kind` and `object_id` are "" for one that found everything as it was to be."""

    id: str
    """The id of the command: the key that its caller chose, or one of ours."""
    status: OperationStatus
    kind: str = ""
    """The kind of the aggregate that it is about."""
    object_id: str = ""
    first_seq: int = 0
    """The position of its first event; 0 where it has none."""
    last_seq: int = 0
    time_us: int = 0
    """When it was accepted; 0 where that is not on record, since it has no event."""
    actor: str = ""
    """Who asked for it."""
    ended_us: int = 0
    """When it came to its end; 0 while it runs."""
    refused: Refused | None = None
    """What was said to a caller who waited, where the end is a bad one."""
