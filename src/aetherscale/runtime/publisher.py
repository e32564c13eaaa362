"""The publisher: log ─▶ NATS. It keeps a copy of the log in a JetStream stream, position for position.

It has no memory of its own: where it stands is what the stream says of itself, compared with the log at every connect
and every minute; what to do then is decided in `bus/streamplan.py`. Whatever the broker loses is published again from
the log. Has never heard of what an event means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

from aetherscale.bus import cloudevents
from aetherscale.bus.bus import Bus, BusUnavailable
from aetherscale.bus.jetstream import (
    MAX_HEADER_BYTES,
    NO_JETSTREAM,
    NO_ROOM,
    SUBJECTS_OVERLAP,
    Stream,
    StreamError,
)
from aetherscale.bus.pipeline import ACK_TIMEOUT_S, Pipeline
from aetherscale.bus.streamplan import FOREIGN, Continue, Create, Halt, LogState, Plan, Rebuild, SetAside, plan
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel import subjects
from aetherscale.kernel.messages import Recorded
from aetherscale.runtime.scrubbing import Source, first_difference, id_of

log = logging.getLogger(__name__)

STANDS_STILL: Final = "the copy of the log on JetStream stands still"
REPLAYED: Final = "Aether-Replayed"
"""Header of an event that may have been published before: the stream is being made anew."""
COMPARE_INTERVAL_S: Final = 60.0
SCRUB_INTERVAL_S: Final = 24 * 3600.0
FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 5.0
STUCK_AFTER: Final = 3
"""So many failures in a row with nothing stored: a nats-server keeps a stream's write error until it is restarted."""
MAX_BYTES: Final = 1024**3


async def _no_rival() -> str:
    return ""


def not_ours() -> str:
    """Another broker's error about its JetStream."""
    return ""


class Publisher:
    """Publishes from `start` to `close`. `alarm` is called with what a human has to know.

    `rivalry` says whether another node of this name is there, who would take our stream for that of an earlier log;
    `lost` says why a broker of our own has no JetStream, and what is done about it.
    """

    def __init__(
        self,
        source: Source,
        bus: Bus,
        *,
        alarm: Callable[[str], None] = lambda text: None,
        rivalry: Callable[[], Awaitable[str]] = _no_rival,
        lost: Callable[[], str] = not_ours,
        max_bytes: int = MAX_BYTES,
        replicas: int = 1,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        compare_interval_s: float = COMPARE_INTERVAL_S,
        scrub_interval_s: float = SCRUB_INTERVAL_S,
    ) -> None:
        self._source, self._bus, self._alarm, self._rivalry = source, bus, alarm, rivalry
        self._lost = lost
        self._ack_timeout_s = ack_timeout_s
        self._compare_interval_s, self._scrub_interval_s = compare_interval_s, scrub_interval_s
        node = source.node
        self._stream = Stream(
            bus,
            subjects.event_stream(node),
            (subjects.node_events(node),),
            description=f"the event log of aetherscale node {node}",
            max_bytes=max_bytes,
            replicas=replicas,
        )
        self._tasks = Tasks("publisher")
        self._poked = asyncio.Event()
        self._bound: asyncio.Timeout | None = None
        self._damage = ""
        self._doubtful_seq = 0
        """Where not 0: messages from here on went out in a pipeline that failed."""
        self._told = self._alarmed = ""
        self._stored_seq = 0
        self._pipeline: Pipeline | None = None
        self._failures = 0
        """How often in a row nothing could be stored."""
        self._trouble, self._due_seq = "", 0
        """The error that stopped the copy, until a later event is stored."""
        self.halted = ""
        """Why nothing is published, where that is so."""

    @property
    def trouble(self) -> str:
        """Why the copy stands still, and what to do about it; "" where it does not."""
        if self.halted:
            return f"the copy of the log on JetStream, {self._stream.name}, is not published to: {self.halted}"
        moves = self._pipeline is not None and self._pipeline.stored >= self._due_seq
        return "" if moves else self._trouble

    @property
    def stored_seq(self) -> int:
        """Up to where the broker is known to have everything."""
        return self._pipeline.stored if self._pipeline is not None else self._stored_seq

    def start(self) -> None:
        """Begin; the broker need not be there yet."""
        self._bus.on_reconnect(self.compare_soon)
        self._tasks.spawn(self._publish_for_ever(), "publish")
        self._tasks.spawn(self._scrub_for_ever(), "scrub")

    async def close(self) -> None:
        """Stop. What is not published yet will be at the next start."""
        await self._tasks.close()

    def compare_soon(self) -> None:
        """Compare stream and log now rather than at the next turn."""
        self._poked.set()
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time())

    async def _publish_for_ever(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            self._poked.clear()
            try:
                decided = await self._compare()
                if isinstance(decided, Halt):
                    self._tell(f"the stream {self._stream.name} is not published to: {decided.why}")
                    self.halted = decided.why
                    await self._pause(self._compare_interval_s)
                    continue
                self.halted = ""
                after, replayed_to = await self._prepare(decided)
                retry_s = FIRST_RETRY_S
                await self._publish(after, replayed_to)
                self._told = self._alarmed = ""
            except (BusUnavailable, StreamError) as failure:
                await self._failed(failure)
                await self._pause(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
            except Exception:
                log.exception("publishing failed; trying again in %.0f s", LAST_RETRY_S)
                self._trouble = f"{STANDS_STILL}: an internal error; the node's log has the details"
                await self._pause(LAST_RETRY_S)

    async def _failed(self, failure: BusUnavailable | StreamError) -> None:
        """Say why events wait, once; look whether a new stream would take what this one does not."""
        way = self._way(failure)
        if str(failure) != self._told:
            log.warning("events wait in the log until they can be published: %s%s", failure, way)
            self._told = str(failure)
        if isinstance(failure, BusUnavailable):
            return
        self._trouble = f"{STANDS_STILL}: {failure}{way}"
        self._failures += 1
        if self._failures >= STUCK_AFTER and await self._has_room():
            self._damage = "it stores nothing any more"
            self._failures = 0

    async def _has_room(self) -> bool:
        try:
            return await self._stream.has_room()
        except (BusUnavailable, StreamError):
            return False

    async def _compare(self) -> Plan:
        damage, self._damage = self._damage, ""
        # The stream first: what is in it by then is in the log by then.
        stream = await self._stream.state()
        head = await self._source.head()
        tip = stream.last_seq if stream is not None else 0
        at_tip = await self._source.read(tip - 1, 1) if 0 < tip <= head else ()
        state = LogState(self._source.node, self._source.epoch, head, id_of(at_tip[0]) if at_tip else "")
        decided = plan(stream, state, self._stream.subjects, self._stream.max_bytes)
        if stream is not None and isinstance(decided, Continue):
            # A refused message does not stop the ones behind it: they fit after whatever took its place.
            if self._doubtful_seq and not damage:
                damage = await self._first_difference(self._doubtful_seq, stream.last_seq)
            if damage:
                decided = Rebuild(stream.first_seq, damage)
        if isinstance(decided, SetAside | Rebuild) and not damage and (rivalry := await self._rivalry()):
            # Each of two would put the other's stream away, again and again.
            decided = Halt(rivalry)
        self._doubtful_seq = 0
        return decided

    async def _prepare(self, decided: Create | Continue | Rebuild | SetAside) -> tuple[int, int]:
        """Make the stream such that it can be published to; after which event, and up to which it is a repetition."""
        if isinstance(decided, Continue):
            unchangeable = await self._stream.adjust()
            if not unchangeable:
                return decided.after, 0
            decided = Rebuild(1, unchangeable)
        first_seq = 1
        if isinstance(decided, SetAside):
            state = await self._stream.state()
            aside = f"{self._stream.name}_{decided.epoch}_{state.last_seq if state else 0}"
            what = "events of another log of this node"
            if decided.epoch == FOREIGN:
                aside += f"_{state.created if state else ''}"
                what = "messages that were never this node's"
            self._tell(f"the stream {self._stream.name} has {what}; kept as {aside}")
            await self._stream.set_aside(aside)
        else:
            first_seq = decided.first_seq
            if isinstance(decided, Rebuild):
                self._tell(f"the stream {self._stream.name} is published again from {first_seq}: {decided.why}")
                await self._stream.delete()
            elif self.stored_seq:
                self._tell(f"the stream {self._stream.name} is published again: it is gone")
        await self._stream.create(first_seq)
        return first_seq - 1, await self._source.head()

    async def _publish(self, after: int, replayed_to: int) -> None:
        """Publish all that the log has and gets, until it is time to compare again."""
        made = Pipeline(self._stream, after, ack_timeout_s=self._ack_timeout_s, on_failure=self.compare_soon)
        due_seq = min(after + 1, await self._source.head())
        async with made as pipeline:
            self._pipeline, self._due_seq = pipeline, due_seq
            self._doubtful_seq = after + 1
            bound = asyncio.timeout(self._compare_interval_s)
            try:
                async with bound:
                    self._bound = bound
                    await self._follow(pipeline, after, replayed_to)
            except TimeoutError:
                if not bound.expired():
                    raise
            finally:
                self._bound = None
                self._stored_seq, self._pipeline = pipeline.stored, None
                if pipeline.stored >= due_seq:
                    self._trouble = ""
                if pipeline.stored > after:
                    self._failures = 0
                self._doubtful_seq = pipeline.stored + 1
            await pipeline.drained()
            self._stored_seq, self._doubtful_seq = pipeline.stored, 0

    async def _follow(self, pipeline: Pipeline, after: int, replayed_to: int) -> None:
        if self._poked.is_set():
            return
        async with aclosing(self._source.subscribe(after)) as pages:  # type: ignore[type-var]
            async for page in pages:
                for recorded in page:
                    await self._publish_one(pipeline, recorded, replayed_to)

    async def _publish_one(self, pipeline: Pipeline, recorded: Recorded, replayed_to: int) -> None:
        await pipeline.publish(
            cloudevents.subject(recorded),
            cloudevents.encode(recorded, self._max_body_bytes),
            id_of(recorded),
            {REPLAYED: "1"} if recorded.seq <= replayed_to else {},
        )

    async def scrub(self) -> str:
        """Read the whole stream and compare it with the log. What differs first, or "".

        The counters of a stream know nothing of a message that a damaged disk has silently lost. A difference is
        repaired: the stream is published again. Raises `StreamError`, `BusUnavailable`.
        """
        state = await self._stream.state()
        if state is None or state.messages == 0:
            return ""
        finding = await self._first_difference(state.first_seq, state.last_seq)
        if finding:
            self._damage = finding
            self.compare_soon()
        return finding

    async def _first_difference(self, first_seq: int, last_seq: int) -> str:
        return await first_difference(self._source, self._stream, self._max_body_bytes, first_seq, last_seq)

    async def _scrub_for_ever(self) -> None:
        # The first one soon after the start: a node that is restarted every day is scrubbed too.
        wait_s = self._scrub_interval_s / 24
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._scrub_interval_s
            try:
                await self.scrub()
            except (BusUnavailable, StreamError) as failure:
                log.warning("the stream %s could not be scrubbed: %s", self._stream.name, failure)
                wait_s = self._scrub_interval_s / 24

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until the connection is back."""
        try:
            async with asyncio.timeout(seconds):
                await self._poked.wait()
        except TimeoutError:
            return

    def _way(self, failure: BusUnavailable | StreamError) -> str:
        """The remedy for a failure, where one is known."""
        code = failure.code if isinstance(failure, StreamError) else 0
        if lost := self._lost():
            return f"; {lost}"
        if code == NO_JETSTREAM:
            return "; turn it on, or use the embedded one"
        if code == SUBJECTS_OVERLAP:
            return "; delete the stream that takes the subjects of this one, or give it others: nats stream ls"
        if code not in NO_ROOM:
            return ""
        size_mib = self._stream.max_bytes // 1024**2
        return (
            f"; the stream asks for {size_mib} MiB: give the broker's JetStream more room, or start the node with a "
            f"smaller --stream-max-bytes, like {max(size_mib // 4, 16)}M"
        )

    def _tell(self, text: str) -> None:
        if text != self._alarmed:
            log.error("%s", text)
            self._alarm(text)
            self._alarmed = text

    @property
    def _max_body_bytes(self) -> int:
        return self._bus.max_body_bytes - MAX_HEADER_BYTES
