"""Messages on their way in: each is handed on with the name of its caller, in the order in which they came.

Whose caller is known is handed on in the turn in which it came; one whose caller has to be asked for waits, and what
came later waits behind it. All who wait are asked for at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from aetherscale.bus.bus import Incoming
from aetherscale.bus.callers import NOBODY, Callers, inbox_of
from aetherscale.bus.tasks import Tasks

MAX_ARRIVALS: Final = 4096
"""Messages that wait for the names of their callers; one more is refused (503, retryable)."""


class Arrivals:
    """The messages of one node. `matters` says whether the name will be used."""

    def __init__(
        self,
        callers: Callers,
        matters: Callable[[Incoming], bool],
        take: Callable[[Incoming, str], None],
        refuse: Callable[[Incoming], None],
    ) -> None:
        self._callers, self._matters, self._take, self._refuse = callers, matters, take, refuse
        self._tasks = Tasks("arrivals")
        self._waiting: deque[tuple[Incoming, str]] = deque()
        self._asking: dict[str, asyncio.Task[str]] = {}
        """By inbox, the question for the first of its messages."""
        self._handing_on = False

    def put(self, incoming: Incoming) -> None:
        """A message has come."""
        actor = self._known(incoming)
        if actor and not self._waiting:
            self._take(incoming, actor)
        elif len(self._waiting) >= MAX_ARRIVALS:
            self._refuse(incoming)
        else:
            inbox = inbox_of(incoming.reply)
            if not actor and inbox not in self._asking:
                self._asking[inbox] = self._tasks.spawn(self._callers.find(incoming.reply), "ask")
            self._waiting.append((incoming, actor))
            if not self._handing_on:
                self._handing_on = True
                self._tasks.spawn(self._hand_on(), "hand on")

    async def close(self) -> None:
        """Hand on what waits, without names."""
        await self._tasks.close()
        while self._waiting:
            incoming, actor = self._waiting.popleft()
            self._take(incoming, actor or NOBODY)

    def _known(self, incoming: Incoming) -> str:
        return self._callers.known(incoming) if incoming.reply and self._matters(incoming) else NOBODY

    async def _hand_on(self) -> None:
        try:
            while self._waiting:
                incoming, actor = self._waiting[0]
                if not actor:
                    asking = self._asking.pop(inbox_of(incoming.reply), None)
                    actor = await asking if asking is not None else self._known(incoming)
                actor = actor or await self._callers.find(incoming.reply)
                self._waiting.popleft()
                self._take(incoming, actor)
        finally:
            self._handing_on = False
