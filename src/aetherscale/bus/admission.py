"""Where calls are let in, from whichever gateway: a bound for each tenant, one for the node, and a count of each task.

    call ─▶ room? ─▶ component? ─▶ serve(call) ─▶ chunks
              └──────────┴────────── Refused

Has never heard of what a task does, nor of how its answer reaches the caller.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from aetherscale.kernel.calls import Call, Serve
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.replies import Chunk

MAX_OPEN_STREAMS: Final = 1024
"""Requests of one tenant that are answered at one time; one more is refused (503, retryable)."""
MAX_TENANTS_STREAMS: Final = 8 * MAX_OPEN_STREAMS
"""Requests of all tenants that are answered at one time: what the node itself can hold."""

Count = Callable[[str, str, float, str], None]
"""Called for each call: component, task, seconds that it took, error or ""."""

BUSY: Final = "this node is answering {} requests, as many as it does at one time"
LATER: Final = "wait a moment, then ask again"


class Admitted:
    """A call that was let in. It takes room until `leave`."""

    def __init__(self, admission: Admission, call: Call, chunks: AsyncIterator[Chunk]) -> None:
        self.call = call
        self.chunks = chunks
        self._admission = admission
        self._begun = asyncio.get_running_loop().time()
        self._left = False

    def leave(self, error: str = "") -> None:
        """Its answer is over; `error` is what it ended with. Once."""
        if not self._left:
            self._left = True
            seconds = asyncio.get_running_loop().time() - self._begun
            self._admission.left(self.call, seconds, error)


class Admission:
    """The calls of one node that are being answered."""

    def __init__(
        self,
        serve: Mapping[str, Serve],
        count: Count = lambda component, task, seconds, error: None,
        max_open_streams: int = MAX_OPEN_STREAMS,
    ) -> None:
        self._serve, self._count, self._max_open_streams = serve, count, max_open_streams
        self._open: Counter[str] = Counter()
        """Calls under way, by tenant; a tenant without any is not in it."""
        self._all = 0

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the components that calls can be for."""
        return tuple(self._serve)

    @property
    def open_calls(self) -> int:
        """How many calls are being answered."""
        return self._all

    def admit(self, call: Call) -> Admitted:
        """Let a call in: it is in its place in the queue of its object when this returns.

        Raises `Refused`: not found for an unknown component, unavailable where there is no room, and whatever the
        component refuses at once.
        """
        if call.component not in self._serve:
            known = ", ".join(sorted(self._serve))
            raise Refused(
                Reason.NOT_FOUND, f"component: got {call.component[:80]!r}, this node has {known}", field="component"
            )
        if self._open[call.tenant] >= self._max_open_streams or self._all >= MAX_TENANTS_STREAMS:
            raise Refused(Reason.UNAVAILABLE, BUSY.format(self._max_open_streams), retryable=True, remedy=LATER)
        admitted = Admitted(self, call, self._serve[call.component](call))
        self._open[call.tenant] += 1
        self._all += 1
        return admitted

    def left(self, call: Call, seconds: float, error: str) -> None:
        """A call that was let in has its answer."""
        self._all -= 1
        self._open[call.tenant] -= 1
        if not self._open[call.tenant]:
            del self._open[call.tenant]
        # Everybody on the broker may ask for the figures, and a message names what belongs to one tenant.
        self._count(call.component, call.task, seconds, error)
