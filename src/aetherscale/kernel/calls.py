"""A request as it stands between the bus, which read it, and the component, which answers it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from msgspec import Struct

from aetherscale.kernel.replies import Chunk


class Call(Struct, frozen=True):
    """A request of one task. Everything but `body` has been checked; the component decodes the body."""

    tenant: str
    component: str
    task: str
    body: bytes
    """JSON options of the task, or nothing."""
    actor: str
    """The caller: `unix:joe`, `nats:joe`, or `user:nats` where it is not known; see `docs/nats.md`.

    The name that it only gives itself is in parentheses: `user:nats (says: joe)`.
    """
    command_id: str
    """The caller's idempotency key, or one of ours."""
    keyed: bool
    """Whether the caller chose `command_id`, so that a repeat is to be recognised."""
    correlation_id: str
    causation_id: str | None = None
    deadline_us: int | None = None
    """The caller stops to wait then; work that has been accepted goes on."""
    object_id: str = ""
    """The object of an `obj` subject, whose id the body then need not repeat."""
    revisions: tuple[str, ...] = ()
    """Unless empty, the request is refused where the object is at none of these revisions: `<id>-<number>`."""
    dry_run: bool = False
    """Whether the request is only decided: nothing is recorded, and the result tells the events that would be."""
    legacy: bool = False
    """Whether it came as the first version's message, which creates missing networks on the way."""


Serve = Callable[[Call], AsyncIterator[Chunk]]
"""How a component takes a call.

The call itself, up to its return, is synchronous and puts the request in its place in the queue of its object, so that
calls keep the order in which they are made. The iterator yields the chunks of the reply and ends after the final one;
`Refused` may be raised by either and becomes the final `error` chunk.
"""
