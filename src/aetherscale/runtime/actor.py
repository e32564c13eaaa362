"""The one actor: takes a component's calls, decides in lanes, appends, has the host do what is owed, and answers.

    call ─▶ lane of the entity ─▶ decide ─▶ append ─▶ committed ─▶ registry, stories, owed work
                                                          │                              │
                       the caller's reply follows the story                   outcome ─▶ same lane

It knows no component: what messages mean, and how the host is reached, is in the `Component` that it is given. A log
that can no longer be trusted is told through `broken`.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from aetherscale.runtime.component import CommandTask, Component, Owed
from aetherscale.runtime.mailboxes import Lanes
from aetherscale.runtime.effects import Clock, OwedWork
from aetherscale.runtime.repeats import Handled, digest_of, handled_before
from aetherscale.runtime.watches import Link, Stories, is_whole
from aetherscale.bus.tasks import Tasks
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.store import (
    Accepted,
    AlreadyAccepted,
    Closed,
    Damaged,
    InDoubt,
    StorageFull,
    StoreError,
    WrongVersion,
)
from aetherscale.kernel.calls import Call
from aetherscale.kernel.claims import FREE, USE_EVENTS, Reservation, Seen, stream_of
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.messages import Envelope, Event, Recorded, event_id, split_stream, stream_name
from aetherscale.kernel.registry import Entity, Registry, advance, apply
from aetherscale.kernel.replies import Chunk, result, status
from aetherscale.kernel.subjects import DEFAULT_TENANT
from aetherscale.kernel.times import SECOND_US
from aetherscale.kernel.wire import decode

log = logging.getLogger(__name__)

S = TypeVar("S")
M = TypeVar("M")

CONFLICT_LIMIT: Final = 100
"""Times that a decision is made anew because somebody else wrote first."""
FULL_RETRY_S: Final = 1.0
"""How soon an answer of the host is recorded again after the disk was full."""
WAIT_LIMIT_S: Final = 3600.0
"""How long a caller is kept informed at most."""
NEVER_US: Final = 2**62
REPEAT_HINT: Final = (
    "the node ends; when it is back, repeat the request under its key: what was written is not done again"
)


class Actor(Generic[S, M]):
    """Runs one component on one log. `registry` is the component's state as of the log's head."""

    def __init__(
        self,
        component: Component[S, M],
        registry: Registry[S],
        event_log: EventLog,
        clock: Clock,
        new_id: Callable[[], str],
        broken: Callable[[StoreError], None],
    ) -> None:
        self.component = component
        self.registry = registry
        self._log = event_log
        self._clock = clock
        self._new_id = new_id
        self._broken = broken
        self._tasks = Tasks(component.name)
        self._lanes = Lanes(self._tasks)
        self._stories: Stories[S] = Stories()
        self._owed = OwedWork(
            self._pending, self._perform, component.failed, self._outcome, clock, self._tasks, component.gate
        )

    def resume(self) -> None:
        """Take up what is owed according to the log; called once, when the host's findings have been told."""
        for entity_id in list(self.registry.entities):
            self._owed.reconsider(entity_id)

    def rest(self) -> None:
        """Begin no more work on the host: the log can no longer be trusted to say what is owed, nor keep the answer."""
        self._owed.close()

    async def close(self) -> None:
        """Stop where we are. What is owed is taken up again by `resume` of the next process."""
        self._owed.close()
        await self._tasks.close()

    def committed(self, recorded: Sequence[Recorded]) -> None:
        """Fold what has become durable; called in the order of the log, before whoever appended it goes on."""
        for index, each in enumerate(recorded):
            entity = apply(self.component.kind, self.registry, each)
            if entity is not None:
                whole = is_whole(recorded, index)
                self._stories.tell(entity.id, Link(each, entity, is_whole=whole))
                if whole:
                    self._owed.reconsider(entity.id)

    def serve(self, call: Call) -> AsyncIterator[Chunk]:
        """Take a call: see `kernel.calls.Serve`."""
        what = f"{self.component.name}.{call.task}"
        query = self.component.queries.get(call.task)
        if query is not None:
            return query.answer(decode(call.body, query.options, what), call)
        task = self.component.commands.get(call.task)
        if task is None:
            near = difflib.get_close_matches(call.task, self.component.tasks(), 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(self.component.tasks())}"
            raise Refused(404, f"{self.component.name} has no task {call.task!r}", hint=hint, field="task")
        options = decode(call.body, task.options, what)
        try:
            target = task.target(options, call)
        except Refused as refused:
            return self._answer_gone(task, options, call, refused)
        link = self._stories.follow(target)
        job = self._lanes.post(target, lambda: self._asked(task, options, call, target), bounded=True)
        return self._answer(job, link, call)

    def tell(self, entity_id: str, message: M) -> asyncio.Future[Any]:
        """What the host says of an entity without being asked: it gets in line behind what was said before."""
        return self._lanes.post(entity_id, lambda: self._told(entity_id, message), bounded=False)

    def progress(self, entity_id: str, chunk: Chunk) -> None:
        """Tell waiting callers how far the work is; nothing of it is kept."""
        self._stories.tell(entity_id, Link(chunk=chunk))

    # --- in the lane ---------------------------------------------------------------------------------------------

    async def _asked(self, task: CommandTask[M], options: Any, call: Call, target: str) -> Handled[S]:
        digest = digest_of(call)
        if call.keyed and (accepted := await self._log.accepted(call.tenant, call.command_id)) is not None:
            return await self._repeated(task, options, call, accepted)
        for _ in range(CONFLICT_LIMIT):
            entity = self.registry.entities.get(target)
            message, seen = task.prepare(options, call, target), task.seen(options, call, target)
            envelope = Envelope(
                message, call.tenant, call.actor, call.command_id, call.correlation_id, call.causation_id, self._clock()
            )
            try:
                kept = digest if call.keyed else None
                return await self._decide(entity, target, envelope, kept, seen, urgent=task.urgent)
            except WrongVersion:
                continue
            except AlreadyAccepted as repeat:
                return await self._repeated(task, options, call, repeat.accepted)
            except StorageFull as full:
                raise Refused(507, f"nothing was done: {full}", retryable=True, hint="aetherscale doctor") from None
        raise Refused(503, f"{target} changes too quickly; nothing was done", retryable=True)

    async def _told(self, entity_id: str, message: M, effect: Owed | None = None) -> None:
        """Record what the host said, however long the disk is full; what was not awaited any more changes nothing."""
        while True:
            if effect is not None:
                owed = self._pending(entity_id)
                if owed is None or owed.key != effect.key:
                    return
            entity = self.registry.entities.get(entity_id)
            envelope = self._said(entity, message)
            if entity is None and not self.component.decider.decide(None, message, envelope.at_us):
                log.warning("the host speaks of %s, which the log does not know: %s", entity_id, message)
                return
            try:
                await self._decide(entity, entity_id, envelope, None, urgent=True)
            except WrongVersion:
                continue
            except StorageFull as full:
                log.warning("%s: what the host said cannot be recorded yet: %s", entity_id, full)
                await asyncio.sleep(FULL_RETRY_S)
                continue
            except Refused:
                # The log can no longer be trusted: this process ends, and the next one asks the host again.
                return
            return

    def _said(self, entity: Entity[S] | None, message: M) -> Envelope[M]:
        """What the host says, as a consequence of the last event of the entity, where it has one."""
        actor, own_id = f"aether:{self.component.name}", self._new_id()
        if entity is None:
            return Envelope(message, DEFAULT_TENANT, actor, own_id, own_id, None, self._clock())
        cause = event_id(self._log.node, self._log.epoch, entity.seq)
        return Envelope(message, entity.tenant, actor, own_id, entity.correlation_id, cause, self._clock())

    async def _decide(
        self,
        entity: Entity[S] | None,
        target: str,
        envelope: Envelope[M],
        digest: bytes | None,
        seen: Sequence[Seen] = (),
        *,
        urgent: bool,
    ) -> Handled[S]:
        """Decide and append. Raises `Refused`, `WrongVersion`, `AlreadyAccepted`, `StorageFull`."""
        state = entity.state if entity else None
        decided = self.component.decider.decide(state, envelope.message, envelope.at_us)
        writes: list[Write] = []
        if decided:
            stream = stream_name(self.component.kind.name, target)
            writes.append(Write(stream, entity.version if entity else 0, tuple(decided)))
            writes.extend(self._reservations(state, decided, envelope))
            writes.extend(Write(each.stream, each.version, ()) for each in seen)
        elif digest is None:
            assert entity is not None
            return Handled(((None, entity),))
        try:
            recorded = await self._log.append(writes, envelope, digest=digest, urgent=urgent)
        except (InDoubt, Damaged, Closed) as failure:
            self._broken(failure)
            raise Refused(503, str(failure), retryable=True, hint=REPEAT_HINT) from failure
        own: list[tuple[Recorded | None, Entity[S]]] = []
        for each in recorded:
            if split_stream(each.stream) == (self.component.kind.name, target):
                entity = advance(self.component.kind, entity, each, target)
                own.append((each, entity))
        assert entity is not None
        return Handled(tuple(own) or ((None, entity),))

    def _reservations(self, state: S | None, decided: Sequence[Event], envelope: Envelope[M]) -> list[Write]:
        """What the events take and let go, each key in its stream."""
        reserved: dict[str, list[Reservation]] = {}
        for event in decided:
            state = self.component.kind.evolve(state, event, envelope.at_us)
            for each in self.component.reservations(state, event):
                reserved.setdefault(stream_of(each, envelope.tenant), []).append(each)
        return [Write(stream, self._expected(stream, each[0]), tuple(each)) for stream, each in reserved.items()]

    def _expected(self, stream: str, reservation: Reservation) -> int | None:
        """The version at which a reservation is made: a shared one at any."""
        if isinstance(reservation, USE_EVENTS):
            return None
        return self.registry.claims.get(stream, FREE).version

    # --- owed work -----------------------------------------------------------------------------------------------

    def _pending(self, entity_id: str) -> Owed | None:
        entity = self.registry.entities.get(entity_id)
        owed: Owed | None = self.component.decider.pending(entity.state) if entity else None
        return owed

    async def _perform(self, entity_id: str, effect: Any) -> M:
        return await self.component.perform(effect, lambda chunk: self.progress(entity_id, chunk))

    def _outcome(self, entity_id: str, effect: Any, outcome: M) -> asyncio.Future[Any]:
        return self._lanes.post(entity_id, lambda: self._told(entity_id, outcome, effect), bounded=False)

    # --- answers -------------------------------------------------------------------------------------------------

    async def _repeated(self, task: CommandTask[M], options: Any, call: Call, accepted: Accepted) -> Handled[S]:
        """What the log has of a command that was accepted before."""
        return await handled_before(self.component.kind, self._log, call, accepted, task.refers(options, call))

    async def _answer_gone(
        self, task: CommandTask[M], options: Any, call: Call, refused: Refused
    ) -> AsyncIterator[Chunk]:
        """The answer to a call whose object is not there: its old answer, where it had been accepted before."""
        accepted = await self._log.accepted(call.tenant, call.command_id) if call.keyed else None
        if accepted is None:
            raise refused
        handled = await self._repeated(task, options, call, accepted)
        async for chunk in self._narrate(handled, self._stories.follow(handled.own[0][1].id), call):
            yield chunk

    async def _answer(self, job: asyncio.Future[Handled[S]], link: Link[S], call: Call) -> AsyncIterator[Chunk]:
        handled = await asyncio.shield(job)
        async for chunk in self._narrate(handled, link, call):
            yield chunk

    async def _narrate(self, handled: Handled[S], link: Link[S], call: Call) -> AsyncIterator[Chunk]:
        """The story from the command on, as status chunks, up to its end."""
        said = False
        for recorded, entity in handled.own[:-1]:
            if chunk := self._announcement(recorded, entity):
                said = True
                yield chunk
        async for told in self._story(handled, link, call):
            if told.chunk is not None:
                yield told.chunk
            if told.entity is None:
                continue
            if chunk := self._announcement(told.recorded, told.entity):
                said = True
                yield chunk
            if told.is_whole and self.component.settle(call.task, told.entity.state):
                yield result(self.component.result(told.entity))
                return
            if not said:
                # A caller who waits for what is under way already has to hear that somebody listens.
                said = True
                yield status("accepted", **{f"{self.component.kind.name}_id": told.entity.id})

    async def _story(self, handled: Handled[S], link: Link[S], call: Call) -> AsyncIterator[Link[S]]:
        """The last of the command's own events, what the log has of the time since, then what happens."""
        recorded, last = handled.own[-1]
        yield Link(recorded, last)
        since = [each for each, _ in handled.after]
        for index, (recorded, last) in enumerate(handled.after):
            yield Link(recorded, last, is_whole=is_whole(since, index))
        # Counted by the loop from here on: the clock of the host may be set while somebody waits.
        loop = asyncio.get_running_loop()
        left_us = (call.deadline_us or NEVER_US) - self._clock()
        until_s = loop.time() + min(left_us / SECOND_US, WAIT_LIMIT_S)
        while True:
            try:
                # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with what it waits for.
                async with asyncio.timeout_at(until_s):
                    link = await link.following()
            except TimeoutError:
                waited_for = {f"{self.component.kind.name}-id": last.id}
                raise Refused(504, "the time to wait ran out; the work goes on", details=waited_for) from None
            if link.entity is None or link.entity.seq > last.seq:
                last = link.entity or last
                yield link

    def _announcement(self, recorded: Recorded | None, entity: Entity[S]) -> Chunk | None:
        return self.component.announce(entity.state, recorded.event) if recorded is not None else None
