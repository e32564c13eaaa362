"""The one error that a caller gets to see: a reason, a sentence, and what can be done next. None of it knows a medium.

`Refused` means that the caller is wrong, or that the request cannot be served now; it is answered, never recorded.
What the host could not do is an outcome and becomes an event; where we are wrong, an assertion fails loudly.

A gateway gives a reason its number or exit status, and makes of a remedy what its users can do: a command line, or a
button. Those of NATS are in `aetherscale.bus.refusals`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeAlias

from msgspec import Struct


class Reason(StrEnum):
    """Why a request is refused. The value is the word for it, everywhere."""

    BAD_REQUEST = "bad-request"
    """It cannot be understood, or is not allowed to say this."""
    FORBIDDEN = "forbidden"
    """The caller may not."""
    NOT_FOUND = "not-found"
    """What it is about does not exist."""
    CONFLICT = "conflict"
    """What there is does not allow it."""
    PRECONDITION_FAILED = "precondition-failed"
    """What it is about has changed since the caller saw it."""
    TOO_LARGE = "too-large"
    """It, or its answer, is larger than a limit."""
    INTERNAL = "internal"
    """What was asked for was tried and failed, or the program made a mistake."""
    NOT_IMPLEMENTED = "not-implemented"
    """This version, or this guest, has nothing for it."""
    UNAVAILABLE = "unavailable"
    """It cannot be served now; later it may."""
    DEADLINE = "deadline"
    """The time to wait for it has run out."""
    STORAGE_FULL = "storage-full"
    """There is no room on a disk for it."""


class Task(Struct, frozen=True):
    """What the caller can have done next: `Task("vm", "stop", "web", {"kill": True})`."""

    kind: str
    """Of the aggregate that the task is about ("vm"); or a part of the node: "log", "events", "doctor"."""
    verb: str = ""
    """What to do with it: "create", "list", "show", "delete"; "" where the part has one task alone."""
    of: str = ""
    """The aggregate, by name or id, or whatever else the task takes; "" for none."""
    options: Mapping[str, str | bool] = {}
    """By name; `True` for one that has no value."""


Remedy: TypeAlias = tuple[str | Task, ...]
"""What to do next: words and tasks, in the order in which they are read. Empty where nothing can be said."""


class Refused(Exception):
    """A request that is not served: the operation, what it got, what it expected, and what to do next.

    `message` is one sentence or two; `field` names the offending field of the input; `retryable` says whether the same
    request may be served later; `made_by` is the task that makes what is missing, or is making it, which the first
    version's message has done on the way, and with `made_for_all` every request.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        remedy: str | Task | Remedy = (),
        field: str = "",
        retryable: bool = False,
        made_by: Task | None = None,
        made_for_all: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.remedy: Remedy = remedy if isinstance(remedy, tuple) else (remedy,) if remedy else ()
        self.field = field
        self.retryable = retryable
        self.made_by = made_by
        self.made_for_all = made_for_all
        self.details = dict(details or {})
