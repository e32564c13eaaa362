"""Where requests come in: it listens for a node's components, makes each message a call, and streams the reply.

    message ─▶ caller ─▶ size ─▶ subject ─▶ headers ─▶ Call ─▶ serve(call) ─▶ chunks ─▶ reply subject, empty message
                           └──────────┴──────────┴───────────────┴─ Refused ─▶ error chunk ─┘

Has never heard of what a task does. Calls keep the order of their messages (`arrivals.py`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from aetherscale.bus import refusals, requests
from aetherscale.bus.admission import BUSY, LATER, Admission, Admitted
from aetherscale.bus.answers import Answer
from aetherscale.bus.arrivals import MAX_ARRIVALS, Arrivals
from aetherscale.bus.bus import Bus, Incoming, Subscription
from aetherscale.bus.callers import Callers, Strangers
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel import replies, subjects
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.replies import Chunk

log = logging.getLogger(__name__)

MAX_REFUSALS: Final = 1024
"""Refusals under way at one time; beyond, a message is dropped, and the log says so once."""
KEEPALIVE_S: Final = 30.0

STOPPING: Final = refusals.error(
    Refused(
        Reason.UNAVAILABLE,
        "the node is stopping; what it has accepted goes on when it is back",
        retryable=True,
        remedy="start the node again, then list what there is",
        details={"goes-on": True},
    )
)
BROKEN: Final = refusals.error(Refused(Reason.INTERNAL, "the node made a mistake; its log says more"))


class Ingress:
    """The requests of one node. `owners` names, for each kind of object, the component that owns it.

    The caller of a task among `queries` is not needed.
    """

    def __init__(
        self,
        bus: Bus,
        admission: Admission,
        *,
        node: str,
        owners: Mapping[str, str],
        clock: Callable[[], int],
        new_id: Callable[[], str],
        keepalive_s: float = KEEPALIVE_S,
        callers: Callers | None = None,
        queries: frozenset[str] = frozenset(),
    ) -> None:
        self._bus, self._admission, self._node, self._owners = bus, admission, node, owners
        self._clock, self._new_id = clock, new_id
        self._keepalive_s = keepalive_s
        self._queries = queries
        self._arrivals = Arrivals(callers or Strangers(), self._changes, self._take, self._too_many)
        self._streams = Tasks("streams")
        self._refusals = Tasks("refusals")
        self._background = Tasks("ingress")
        self._subscriptions: list[Subscription] = []
        self._deserted = bus.inbox()
        """Below it the broker says which replies have no listener any more."""
        self._answering: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[tuple[str, str, str]] = set()
        self._owned: dict[tuple[str, str, str], Subscription] = {}
        self._changing: set[tuple[str, str, str]] = set()
        """Subscriptions of these objects may be under way; the others need no look, however many they are."""
        self._following = False
        self._ownership_followed = asyncio.Event()
        self._stopping = False
        self._dropped = 0

    async def start(self) -> None:
        """Listen to everything that concerns the node as a whole; objects are listened to as they are owned."""
        wanted = [subjects.rpc_subscription()]
        for component in self._admission.components:
            wanted += subjects.subscriptions(component, self._node)
        self._subscriptions += await asyncio.gather(
            *(self._bus.listen(subject, queue, self._arrivals.put) for subject, queue in wanted),
            self._bus.listen(f"{self._deserted}.*", "", self._desert),
        )

    def owns(self, kind: str, object_id: str, tenant: str, owned: bool) -> None:
        """Say whether requests for this object come here from now on; the last word counts.

        The subject of an object without an owner answers 503. `settled` waits until the broker knows.
        """
        key = (kind, object_id, tenant)
        if owned:
            self._wanted.add(key)
        else:
            self._wanted.discard(key)
        self._changing.add(key)
        if not self._following and not self._stopping:
            self._following = True
            self._background.spawn(self._follow_ownership(), "ownership")

    async def own(self, kind: str, object_id: str, tenant: str) -> None:
        """As `owns`, and wait until the broker knows."""
        self.owns(kind, object_id, tenant, owned=True)
        await self.settled()

    async def settled(self) -> None:
        """Wait until the broker knows of every change of ownership so far."""
        while self._changing and not self._stopping:
            self._ownership_followed.clear()
            await self._ownership_followed.wait()

    async def _follow_ownership(self) -> None:
        """Listen to what is owned and to nothing else; what changes meanwhile is done in a next round."""
        try:
            while self._changing:
                changing = sorted(self._changing)
                for key in changing:
                    if key in self._owned and key not in self._wanted:
                        await self._owned.pop(key).unsubscribe()
                missing = [key for key in changing if key in self._wanted and key not in self._owned]
                heard = await asyncio.gather(*(self._listen_to(*key) for key in missing))
                self._owned.update(zip(missing, heard, strict=True))
                self._changing -= {key for key in changing if (key in self._wanted) == (key in self._owned)}
        finally:
            self._following = False
            self._ownership_followed.set()

    async def _listen_to(self, kind: str, object_id: str, tenant: str) -> Subscription:
        subject, queue = subjects.object_subscription(tenant, kind, object_id, self._node)
        return await self._bus.listen(subject, queue, self._arrivals.put)

    async def close(self) -> None:
        """Take no more, and answer waiting callers that the node stops. What was accepted is not given up."""
        self._stopping = True
        for subscription in (*self._subscriptions, *self._owned.values()):
            await subscription.unsubscribe()
        # A task that is cancelled before its first step says nothing, not even that it was cancelled.
        await self._arrivals.close()
        await asyncio.sleep(0)
        for tasks in (self._streams, self._refusals, self._background):
            await tasks.close()

    def _changes(self, incoming: Incoming) -> bool:
        """Whether this may be a command: its events have the caller's name."""
        return incoming.subject.rpartition(".")[2] not in self._queries

    def _too_many(self, incoming: Incoming) -> None:
        refused = Refused(Reason.UNAVAILABLE, BUSY.format(MAX_ARRIVALS), retryable=True, remedy=LATER)
        self._refuse(incoming, [], False, refusals.error(refused))

    def _take(self, incoming: Incoming, actor: str) -> None:
        targets: list[str] = []
        fan_out = False
        try:
            address = subjects.parse(incoming.subject)
            fan_out = address.subject_class in subjects.FAN_OUT
            if incoming.reply and subjects.may_answer(incoming.reply, address.tenant):
                targets.append(incoming.reply)
            requests.check_size(incoming)
            if address.subject_class == "rpc":
                targets += requests.response_channels(incoming.body, address.tenant, besides=targets)
            call = requests.read(
                incoming, address, self._owners, actor=actor, now_us=self._clock(), new_id=self._new_id
            )
            admitted = self._admission.admit(call)
        except Refused as refused:
            self._refuse(incoming, targets, fan_out, refusals.error(refused))
        except Exception:
            log.exception("the call of a message on %r failed", incoming.subject[:200])
            self._refuse(incoming, targets, fan_out, BROKEN)
        else:
            # Who knows it can end the reply, and only who gets the reply may.
            token = secrets.token_hex(16)
            answer = self._answer(targets, fan_out, f"{self._deserted}.{token}")
            task = self._streams.spawn(self._stream(admitted, answer), f"{call.component} {call.task}"[:80])
            self._answering[token] = task
            task.add_done_callback(lambda _: self._answered(token, admitted))

    def _answered(self, token: str, admitted: Admitted) -> None:
        self._answering.pop(token, None)
        admitted.leave()

    def _desert(self, incoming: Incoming) -> None:
        """The broker says that a reply has no listener any more: it ends. What was accepted goes on."""
        task = self._answering.get(incoming.subject.rpartition(".")[2])
        if task is not None and incoming.is_no_responders:
            task.cancel()

    def _refuse(self, incoming: Incoming, targets: list[str], fan_out: bool, error: Chunk) -> None:
        log.debug("refused a message on %r: %s", incoming.subject[:200], error["message"])
        if not targets and incoming.reply and subjects.may_answer(incoming.reply, ""):
            targets = [incoming.reply]
        if len(self._refusals) >= MAX_REFUSALS:
            self._dropped += 1
            if self._dropped == 1:
                log.warning("more than %d refusals are under way; messages are dropped without a word", MAX_REFUSALS)
            return
        self._refusals.spawn(self._say(self._answer(targets, fan_out), error), "refusal")

    def _answer(self, targets: list[str], fan_out: bool, deserted: str = "") -> Answer:
        return Answer(
            self._bus,
            self._background,
            self._node,
            targets,
            fan_out=fan_out,
            keepalive_s=self._keepalive_s,
            deserted=deserted,
        )

    async def _say(self, answer: Answer, last: Chunk) -> None:
        try:
            await answer.send(last)
        finally:
            await answer.end()

    async def _stream(self, admitted: Admitted, answer: Answer) -> None:
        call, last = admitted.call, BROKEN
        try:
            last = await self._relay(admitted.chunks, answer)
        except Refused as refused:
            last = refusals.error(refused)
            await answer.send(last)
        except asyncio.CancelledError:
            await answer.send(STOPPING if self._stopping else BROKEN)
            raise
        except Exception:
            log.exception("%s %s failed (command %s)", call.component, call.task[:80], call.command_id)
            await answer.send(BROKEN)
        finally:
            await answer.end()
            admitted.leave(f"{last['code']} {last['error']}" if last["type"] == "error" else "")

    async def _relay(self, chunks: AsyncIterator[Chunk], answer: Answer) -> Chunk:
        """Send all chunks up to the final one, which it returns."""
        try:
            async for chunk in chunks:
                await answer.send(chunk)
                if replies.is_final(chunk):
                    return chunk
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()
        raise AssertionError("the reply ended without a result or an error")
