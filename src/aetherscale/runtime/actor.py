"""The one actor: takes a component's calls, decides in mailboxes, appends, performs pending effects, and answers.

    call ─▶ mailbox of the aggregate ─▶ decide ─▶ append ─▶ committed ─▶ registry, watches, pending effects
                                                          │                              │
                        the caller's reply follows the changes                 outcome ─▶ same mailbox

It knows no component: what messages mean, and how the host is reached, is in the `Component` that it is given. A log
that can no longer be trusted is told through `broken`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final, Generic, TypeVar

from msgspec.structs import replace

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
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.messages import Envelope, Event, Recorded, event_id, split_stream, stream_name
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.registry import Aggregate, Registry, advance, apply
from aetherscale.kernel.replies import Chunk, status
from aetherscale.kernel.reservations import Seen
from aetherscale.kernel.subjects import DEFAULT_TENANT
from aetherscale.kernel.wire import decode
from aetherscale.runtime.asked import no_such_task
from aetherscale.runtime.component import Command, Component, Driver, Effect
from aetherscale.runtime.effects import Clock, EffectRunner
from aetherscale.runtime.mailboxes import Mailboxes
from aetherscale.runtime.narration import Narrator
from aetherscale.runtime.ontheway import Aside, OnTheWay
from aetherscale.runtime.repeats import Handled, digest_of, handled_before
from aetherscale.runtime.reserving import reservations
from aetherscale.runtime.trying import require_revision, tried
from aetherscale.runtime.watches import Change, Watches
from aetherscale.runtime.world import NodeWorld, Sight

log = logging.getLogger(__name__)

S = TypeVar("S")
M = TypeVar("M")

CONFLICT_LIMIT: Final = 100
"""How many times a decision is made again because another append came first."""
FULL_RETRY_S: Final = 1.0
"""How soon an answer of the host is recorded again after the disk was full."""
REPEAT_HINT: Final = (
    "the node ends; when it is back, repeat the request under its key: what was written is not done again"
)


class Actor(Generic[S, M]):
    """Runs one component on one log. `registry` is the component's state as of the log's head."""

    def __init__(
        self,
        component: Component[S, M],
        registry: Registry[S],
        world: NodeWorld,
        driver: Driver[S, M],
        event_log: EventLog,
        clock: Clock,
        new_id: Callable[[], str],
        broken: Callable[[StoreError], None],
        on_the_way: OnTheWay,
    ) -> None:
        self.component = component
        self.registry = registry
        self.driver = driver
        self._kind = component.kind.name
        self._world = world
        self._service = component.open_service(world, driver)
        self._narrator = Narrator(component, world, clock)
        self._log = event_log
        self._clock = clock
        self._new_id = new_id
        self._broken = broken
        self._on_the_way = on_the_way
        self._tasks = Tasks(component.name)
        self.mailboxes = Mailboxes(self._tasks)
        self._watches: Watches[S] = Watches()
        gates = {effect: asyncio.Semaphore(limit) for effect, limit in component.concurrency.items()}
        self._effects = EffectRunner(
            *(self._pending, self._perform, self._outcome, clock, self._tasks),
            lambda effect: gates.get(type(effect), nullcontext()),
        )

    def resume(self) -> None:
        """Begin the pending effects; called once, after the first reconciliation."""
        for aggregate_id in list(self.registry.aggregates):
            self._effects.reconsider(aggregate_id)

    def rest(self) -> None:
        """Begin no more effects: the log can no longer be trusted to say what is pending, nor to keep the answer."""
        self._effects.close()

    async def close(self) -> None:
        """Stop where we are. What is pending is taken up again by `resume` of the next process."""
        self._effects.close()
        await self._tasks.close()

    def committed(self, recorded: Recorded, *, is_whole: bool) -> None:
        """Fold an event that has become durable; called in the order of the log, before its appender goes on.

        `is_whole` says whether it is the last event of its decision.
        """
        aggregate = apply(self.component.kind, self.registry, recorded)
        if aggregate is not None:
            self._watches.tell(aggregate.id, Change(recorded, aggregate, is_whole=is_whole))
            if is_whole:
                self._effects.reconsider(aggregate.id)

    def serve(self, call: Call) -> AsyncIterator[Chunk]:
        """Take a call: see `kernel.calls.Serve`."""
        what, component, kind = f"{call.component}.{call.task}", self.component, self._kind
        if (query := component.queries.get(call.task)) is not None:
            return query.answer(self._service, decode(call.body, query.options, what), call)
        if call.task == component.identity.list_task:
            return self._world.list_all(kind, decode(call.body, component.listing.list_options, what), call)
        if call.task == component.identity.show_task:
            return self._world.show(kind, decode(call.body, component.listing.show_options, what), call)
        command = component.commands.get(call.task)
        if command is None:
            raise no_such_task(component.name, call.task, component.tasks())
        options = decode(call.body, command.options, what)
        try:
            target = self._target(command, options, call)
        except Refused as refused:
            return self._answer_gone(command, options, call, refused)
        if call.dry_run:
            deciding = self.mailboxes.post(target, lambda: self._tried(command, options, call, target), bounded=True)
            return tried(deciding, self._kind, target)
        change, aside = self._watches.follow(target), Aside()
        job = self.mailboxes.post(target, lambda: self._asked(command, options, call, target, aside), bounded=True)
        return self._answer(job, change, call, aside)

    def named(self, tenant: str, name: str) -> Aggregate[S] | None:
        """As in `Maker`."""
        return self._world.named(self._kind, tenant, name)

    def join(self, aggregate: Aggregate[S], call: Call) -> AsyncIterator[Chunk]:
        """As in `Maker`."""
        return self._narrator.narrate(Handled(((None, aggregate),)), self._watches.follow(aggregate.id), call)

    def report(self, observation: Any) -> asyncio.Future[Any]:
        """An observation of the host about an aggregate: see `Report`."""
        return self.tell(getattr(observation, f"{self._kind}_id"), observation)

    def tell(self, aggregate_id: str, message: M) -> asyncio.Future[Any]:
        """An observation of the host about an aggregate: it waits behind earlier messages."""
        return self.mailboxes.post(aggregate_id, lambda: self._told(aggregate_id, message), bounded=False)

    def progress(self, aggregate_id: str, chunk: Chunk) -> None:
        """Report the progress of an effect to waiting callers; it is not stored."""
        self._watches.tell(aggregate_id, Change(chunk=chunk))

    def _target(self, command: Command[S, M], options: Any, call: Call) -> str:
        """The id of the aggregate that a command is for. Raises `Refused` (bad request, not found)."""
        if command.creates:
            return derive_id(self._log.node, call.tenant, call.command_id)
        return self._world.referred(self._kind, options, call).id

    # --- in the mailbox ------------------------------------------------------------------------------------------

    async def _asked(self, command: Command[S, M], options: Any, call: Call, target: str, aside: Aside) -> Handled[S]:
        """Decide on a command and append. Whether it is a repeat, the append itself tells."""
        digest = digest_of(call) if call.keyed else None
        beforehand = command.beforehand
        for _ in range(CONFLICT_LIMIT):
            aggregate = self.registry.aggregates.get(target)
            sight = Sight(self._world, self._kind, target)
            try:
                require_revision(aggregate, call)
                envelope = self._meant(command.prepare(options, call, target, sight), call)
                decided = self._decide(aggregate, envelope)
            except Refused as refused:
                # A command that was accepted once has its answer, whatever is in its way by now.
                if (accepted := await self._accepted(call)) is not None:
                    return await self._repeated(command, options, call, accepted)
                await self._on_the_way.make(refused, call, aside.tell)
                continue
            if beforehand is not None and (keeping := beforehand(options, target, self._world)) is not None:
                # Decided anew after it: nothing may come between a decision and its append.
                await keeping
                beforehand = None
                continue
            try:
                return await self._record(
                    aggregate, target, envelope, decided, digest, sight.seen, urgent=command.frees
                )
            except WrongVersion:
                continue
            except AlreadyAccepted as repeat:
                return await self._repeated(command, options, call, repeat.accepted)
            except StorageFull as full:
                raise Refused(
                    Reason.STORAGE_FULL, f"nothing was done: {full}", retryable=True, remedy=Task("doctor")
                ) from None
        raise Refused(Reason.UNAVAILABLE, f"{target} changes too quickly; nothing was done", retryable=True)

    async def _tried(self, command: Command[S, M], options: Any, call: Call, target: str) -> Sequence[Event]:
        """Decide on a command, and record nothing. What would be made on the way first is refused."""
        aggregate = self.registry.aggregates.get(target)
        require_revision(aggregate, call)
        sight = Sight(self._world, self._kind, target)
        return self._decide(aggregate, self._meant(command.prepare(options, call, target, sight), call))

    async def _told(self, aggregate_id: str, message: M, effect: Effect | None = None) -> None:
        """Record what the host said, however long the disk is full; what was not awaited any more changes nothing."""
        while True:
            if effect is not None:
                pending = self._pending(aggregate_id)
                if pending is None or pending.key != effect.key:
                    return
            aggregate = self.registry.aggregates.get(aggregate_id)
            envelope = self._said(aggregate, message)
            decided = self._decide(aggregate, envelope)
            if aggregate is None and not decided:
                log.warning("the host reports about %s, which the log does not know: %s", aggregate_id, message)
                return
            try:
                await self._record(aggregate, aggregate_id, envelope, decided, None, urgent=True)
            except WrongVersion:
                continue
            except StorageFull as full:
                log.warning("%s: the host's report cannot be recorded yet: %s", aggregate_id, full)
                await asyncio.sleep(FULL_RETRY_S)
                continue
            except Refused:
                # The log can no longer be trusted: this process ends, and the next one asks the host again.
                return
            return

    def _said(self, aggregate: Aggregate[S] | None, message: M) -> Envelope[M]:
        """The host's message, as a consequence of the last event of the aggregate, where it has one."""
        actor, own_id = f"aether:{self.component.name}", self._new_id()
        if aggregate is None:
            return Envelope(message, DEFAULT_TENANT, actor, own_id, own_id, None, self._clock())
        cause = event_id(self._log.node, self._log.epoch, aggregate.seq)
        return Envelope(message, aggregate.tenant, actor, own_id, aggregate.correlation_id, cause, self._clock())

    def _meant(self, message: M, call: Call) -> Envelope[M]:
        """The caller's message."""
        return Envelope(
            message, call.tenant, call.actor, call.command_id, call.correlation_id, call.causation_id, self._clock()
        )

    def _decide(self, aggregate: Aggregate[S] | None, envelope: Envelope[M]) -> Sequence[Event]:
        state = aggregate.state if aggregate else None
        return self.component.decider.decide(state, envelope.message, envelope.at_us)

    async def _record(
        self,
        aggregate: Aggregate[S] | None,
        target: str,
        envelope: Envelope[M],
        decided: Sequence[Event],
        digest: bytes | None,
        seen: Sequence[Seen] = (),
        *,
        urgent: bool,
    ) -> Handled[S]:
        """Append what was decided. Raises `Refused`, `WrongVersion`, `AlreadyAccepted`, `StorageFull`."""
        writes: list[Write] = []
        if decided:
            stream = stream_name(self._kind, target)
            state = aggregate.state if aggregate else None
            writes.append(Write(stream, aggregate.version if aggregate else 0, tuple(decided)))
            writes.extend(reservations(self.component, self.registry, target, state, decided, envelope))
            writes.extend(Write(each.stream, each.version, ()) for each in seen)
        elif digest is None:
            assert aggregate is not None
            return Handled(((None, aggregate),))
        try:
            recorded = await self._log.append(writes, envelope, digest=digest, urgent=urgent)
        except (InDoubt, Damaged, Closed) as failure:
            self._broken(failure)
            raise Refused(Reason.UNAVAILABLE, str(failure), retryable=True, remedy=REPEAT_HINT) from failure
        own: list[tuple[Recorded | None, Aggregate[S]]] = []
        for each in recorded:
            if split_stream(each.stream) == (self._kind, target):
                aggregate = advance(self.component.kind, aggregate, each, target)
                own.append((each, aggregate))
        assert aggregate is not None
        return Handled(tuple(own) or ((None, aggregate),))

    # --- pending effects -----------------------------------------------------------------------------------------

    def _pending(self, aggregate_id: str) -> Effect | None:
        aggregate = self.registry.aggregates.get(aggregate_id)
        pending: Effect | None = self.component.decider.pending(aggregate.state) if aggregate else None
        return pending

    async def _perform(self, aggregate_id: str, effect: Any) -> M:
        def progress(step: str, /, **fields: Any) -> None:
            self.progress(aggregate_id, status("progress", **{f"{self._kind}_id": aggregate_id}, step=step, **fields))

        if "tenant" in effect.__struct_fields__:
            effect = replace(effect, tenant=self.registry.aggregates[aggregate_id].tenant)
        return await self.driver.perform(effect, progress)

    def _outcome(self, aggregate_id: str, effect: Any, outcome: M) -> asyncio.Future[Any]:
        return self.mailboxes.post(aggregate_id, lambda: self._told(aggregate_id, outcome, effect), bounded=False)

    # --- answers -------------------------------------------------------------------------------------------------

    async def _accepted(self, call: Call) -> Accepted | None:
        """The record of a call that was accepted before."""
        return await self._log.accepted(call.tenant, call.command_id) if call.keyed else None

    async def _repeated(self, command: Command[S, M], options: Any, call: Call, accepted: Accepted) -> Handled[S]:
        """The record of a command that was accepted before."""
        reference = "" if command.creates else self.component.reference_of(options, call)
        return await handled_before(self.component.kind, self._log, call, accepted, reference)

    async def _answer_gone(
        self, command: Command[S, M], options: Any, call: Call, refused: Refused
    ) -> AsyncIterator[Chunk]:
        """The answer to a call whose object is not there: its old answer, where it had been accepted before."""
        if (accepted := await self._accepted(call)) is None:
            raise refused
        handled = await self._repeated(command, options, call, accepted)
        async for chunk in self._narrator.narrate(handled, self._watches.follow(handled.own[0][1].id), call):
            yield chunk

    async def _answer(
        self, job: asyncio.Future[Handled[S]], change: Change[S], call: Call, aside: Aside
    ) -> AsyncIterator[Chunk]:
        async for chunk in aside.until(job):
            yield chunk
        handled = await asyncio.shield(job)
        async for chunk in self._narrator.narrate(handled, change, call):
            yield chunk
