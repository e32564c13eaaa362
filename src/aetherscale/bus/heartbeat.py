"""A node among others: it sends a heartbeat every five seconds, answers requests to all nodes, and hears the others.

aether.v1.sys.hb.<node> every 5 s, with or without a listener aether.v1.sys.all.node.info a request here gets one answer
from each node, at once

Two nodes of one name are a mistake that nothing else shows: requests go to the one or to the other, and each takes the
other's events for its own. So each listens to its own name. It says aloud what it hears, and serves on: anybody who may
publish can forge a heartbeat, and a forged one must not stop a node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from aetherscale.bus import beats
from aetherscale.bus.beats import INTERVAL_S, MAX_PEERS, Beat
from aetherscale.bus.bus import Bus, BusUnavailable, Incoming, Subscription, TooLarge
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel import subjects, wire
from aetherscale.kernel.errors import Refused

log = logging.getLogger(__name__)

MISSED: Final = 3
"""A node that has missed so many beats is no longer there."""
MAX_ANSWERS: Final = 64
"""Answers under way at one time; a question beyond is dropped."""
ANSWER_S: Final = 2.0
"""How long a node waits for others of its own name to answer."""

Report = Callable[[], Awaitable[Beat]]


class Heartbeat:
    """Beats, answers and listens from `start` to `close`; a beat that cannot be sent is left out, never sent late.

    `report` says what the node is now. `me` is the identity that its beats have.
    """

    def __init__(
        self,
        bus: Bus,
        report: Report,
        me: tuple[str, str, str],
        *,
        interval_s: float = INTERVAL_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._bus, self._report, self._me = bus, report, me
        self._interval_s, self._answer_s = interval_s, answer_s
        self._tasks = Tasks("heartbeat")
        self._answers = Tasks("answers about the node")
        self._subscriptions: list[Subscription] = []
        self._inbox = bus.inbox()
        self._loop = asyncio.get_running_loop()
        self._heard: dict[tuple[str, str, str], float] = {}
        """Others, with when they were heard last."""
        self._suspects: dict[tuple[str, str, str], str] = {}
        """Others of our name that were heard once, with what their beat said of the time."""
        self._rivals: dict[tuple[str, str, str], float] = {}
        self._answered = asyncio.Event()

    async def start(self) -> None:
        """Begin, with the first beat at once, and with the question who else is there."""
        self._subscriptions += await asyncio.gather(
            self._bus.listen(subjects.heartbeat("*"), "", self._take_beat),
            self._bus.listen(subjects.ask_nodes(), "", self._take_question),
            self._bus.listen(self._inbox, "", self._take_answer),
        )
        self._bus.on_reconnect(self._ask_soon)
        self._ask_soon()
        self._tasks.spawn(self._beat_for_ever(), "beat")

    async def close(self) -> None:
        """Stop."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self._answers.close()
        await self._tasks.close()

    @property
    def peers(self) -> Sequence[str]:
        """The names of the other nodes that are heard."""
        return sorted({node for node, _, _ in self._alive(self._heard)} - {self._me[0]})

    @property
    def trouble(self) -> str:
        """A warning about other nodes of the same name; "" where there are none."""
        others = self._alive(self._rivals)
        return _rivalry(self._me, others[0]) if others else ""

    async def rivalry(self) -> str:
        """As `trouble`, after everybody of our name who is there has been asked."""
        if not self.trouble:
            self._answered.clear()
            await self._ask()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._answer_s):
                    while not self.trouble:
                        await self._answered.wait()
                        self._answered.clear()
        return self.trouble

    async def _beat_for_ever(self) -> None:
        subject = subjects.heartbeat(self._me[0])
        while True:
            body = await self._encoded()
            with suppress(BusUnavailable, TooLarge):
                await self._bus.publish(subject, body)
            await asyncio.sleep(self._interval_s)

    async def _encoded(self) -> bytes:
        beat = replace(await self._report(), peers=tuple(self.peers[:MAX_PEERS]))
        return wire.encode(beat)

    def _take_question(self, incoming: Incoming) -> None:
        if subjects.may_answer(incoming.reply, "") and len(self._answers) < MAX_ANSWERS:
            self._answers.spawn(self._answer(incoming.reply), "answer")

    async def _answer(self, reply: str) -> None:
        with suppress(BusUnavailable, TooLarge):
            await self._bus.publish(reply, await self._encoded())

    def _ask_soon(self) -> None:
        if len(self._answers) < MAX_ANSWERS:
            self._answers.spawn(self._ask(), "ask")

    async def _ask(self) -> None:
        with suppress(BusUnavailable):
            await self._bus.publish(subjects.ask_nodes(), b"", reply=self._inbox)

    def _take_beat(self, incoming: Incoming) -> None:
        with suppress(Refused):
            self._hear(beats.read(incoming.body, incoming.subject), asked=False)

    def _take_answer(self, incoming: Incoming) -> None:
        with suppress(Refused):
            self._hear(beats.read(incoming.body), asked=True)

    def _hear(self, beat: Beat, *, asked: bool) -> None:
        if beat.identity == self._me:
            return
        self._remember(self._heard, beat.identity)
        if beat.node != self._me[0]:
            return
        # What a process that has ended said last may still be on its way: only who answers, or says more, is there.
        if asked or self._suspects.setdefault(beat.identity, beat.time) != beat.time:
            if beat.identity not in self._rivals:
                log.error("%s", _rivalry(self._me, beat.identity))
            self._remember(self._rivals, beat.identity)
            self._answered.set()
        elif len(self._suspects) > MAX_PEERS:
            self._suspects.clear()
        else:
            self._ask_soon()

    def _remember(self, heard: dict[tuple[str, str, str], float], who: tuple[str, str, str]) -> None:
        if who not in heard and len(heard) >= MAX_PEERS:
            for silent in set(heard) - set(self._alive(heard)):
                del heard[silent]
            if len(heard) >= MAX_PEERS:
                return
        heard[who] = self._loop.time()

    def _alive(self, heard: dict[tuple[str, str, str], float]) -> list[tuple[str, str, str]]:
        since = self._loop.time() - MISSED * self._interval_s
        return [who for who, last in heard.items() if last >= since]


def _rivalry(me: tuple[str, str, str], other: tuple[str, str, str]) -> str:
    which = "a copy of this node's log" if me[1] == other[1] else f"log {other[1]}, this one has log {me[1]}"
    return (
        f"another node of the same name, {me[0]}, is on this NATS server; it has {which}. Requests go to either of "
        "them. Stop one of them: a node keeps the name of its log, so the other one needs a new state directory and "
        "another --node NAME"
    )
