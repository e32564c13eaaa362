"""The reply to a command: what came of it and what follows, as status chunks, up to the end of its task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Generic, TypeVar

from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.registry import Aggregate
from aetherscale.kernel.replies import Chunk, result, status
from aetherscale.kernel.times import SECOND_US
from aetherscale.kernel.wire import decode
from aetherscale.runtime.component import Component, World
from aetherscale.runtime.effects import Clock
from aetherscale.runtime.repeats import Handled
from aetherscale.runtime.watches import Change, is_whole

S = TypeVar("S")

WAIT_LIMIT_S: Final = 3600.0
"""How long a caller is kept informed at most."""
NEVER_US: Final = 2**62


class Narrator(Generic[S]):
    """Sends the changes of one component's aggregates to its callers."""

    def __init__(self, component: Component[S, Any], world: World, clock: Clock) -> None:
        self._component = component
        self._kind = component.kind.name
        self._world = world
        self._clock = clock

    async def narrate(self, handled: Handled[S], change: Change[S], call: Call) -> AsyncIterator[Chunk]:
        """The changes from the command on, as status chunks, up to its end. What others ask of the aggregate meanwhile
        is among them, since the command waits for that too.
        """
        said, command = False, self._component.commands[call.task]
        options = decode(call.body, command.options, call.task)
        for recorded, aggregate in handled.own[:-1]:
            if chunk := self._announcement(recorded, aggregate):
                said = True
                yield chunk
        async for told in self._changes(handled, change, call):
            if told.chunk is not None:
                yield told.chunk
            if told.aggregate is None:
                continue
            if chunk := self._announcement(told.recorded, told.aggregate):
                said = True
                yield chunk
            if told.is_whole and command.is_done(told.aggregate.state, options):
                yield result(self._world.fields(self._kind, told.aggregate))
                return
            if not said:
                # A caller who waits for work that is under way already has to hear that the node listens.
                said = True
                yield status("accepted", **{f"{self._kind}_id": told.aggregate.id})

    async def _changes(self, handled: Handled[S], change: Change[S], call: Call) -> AsyncIterator[Change[S]]:
        """The last of the command's own events, what the log has of the time since, then what happens."""
        recorded, last = handled.own[-1]
        yield Change(recorded, last)
        since = [each for each, _ in handled.after]
        for index, (recorded, last) in enumerate(handled.after):
            yield Change(recorded, last, is_whole=is_whole(since, index))
        # Counted by the loop from here on: the clock of the host may be set while a caller waits.
        loop = asyncio.get_running_loop()
        left_us = (call.deadline_us or NEVER_US) - self._clock()
        until_s = loop.time() + min(left_us / SECOND_US, WAIT_LIMIT_S)
        while True:
            try:
                # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with what it waits for.
                async with asyncio.timeout_at(until_s):
                    change = await change.following()
            except TimeoutError:
                waited_for = {f"{self._kind}-id": last.id}
                raise Refused(
                    Reason.DEADLINE, "the time to wait ran out; the work goes on", details=waited_for
                ) from None
            if change.aggregate is None or change.aggregate.seq > last.seq:
                last = change.aggregate or last
                yield change

    def _announcement(self, recorded: Recorded | None, aggregate: Aggregate[S]) -> Chunk | None:
        return self._component.announce(aggregate.state, recorded.event) if recorded is not None else None
