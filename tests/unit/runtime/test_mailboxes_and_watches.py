"""Order within an aggregate, independence between aggregates, and watches that wait for nobody."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable

import pytest

from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.failures import EffectFailed
from aetherscale.runtime.effects import EffectRunner
from aetherscale.runtime.mailboxes import MAILBOX_LIMIT, Mailboxes
from aetherscale.runtime.watches import Change, Watches


def appending(done: list[str], name: str, gate: asyncio.Event | None = None) -> Callable[[], Awaitable[str]]:
    async def job() -> str:
        if gate is not None:
            await gate.wait()
        done.append(name)
        return name

    return job


async def test_jobs_of_one_entity_happen_in_order_and_those_of_others_do_not_wait() -> None:
    done: list[str] = []
    mailboxes, gate = Mailboxes(Tasks("test")), asyncio.Event()
    first = mailboxes.post("a", appending(done, "a1", gate), bounded=True)
    second = mailboxes.post("a", appending(done, "a2"), bounded=True)
    await mailboxes.post("b", appending(done, "b1"), bounded=True)
    assert done == ["b1"]
    gate.set()
    assert [await first, await second] == ["a1", "a2"]
    assert done == ["b1", "a1", "a2"]


@pytest.mark.our_mistake
async def test_a_job_that_breaks_is_logged_and_the_mailbox_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    mailboxes = Mailboxes(Tasks("test"))

    async def broken() -> None:
        raise ZeroDivisionError

    failure = mailboxes.post("a", broken, bounded=True)
    after = mailboxes.post("a", appending(done, "a2"), bounded=True)
    with caplog.at_level(logging.ERROR), pytest.raises(Refused) as refusal:
        await failure
    assert refusal.value.reason == Reason.INTERNAL
    assert "ZeroDivisionError" in caplog.text
    assert await after == "a2"


async def test_a_full_mailbox_turns_callers_away_but_not_the_host() -> None:
    tasks = Tasks("test")
    done: list[str] = []
    mailboxes, gate = Mailboxes(tasks), asyncio.Event()
    for number in range(MAILBOX_LIMIT):
        mailboxes.post("a", appending(done, str(number), gate), bounded=True)
    with pytest.raises(Refused) as refusal:
        mailboxes.post("a", appending(done, "caller"), bounded=True)
    assert refusal.value.reason == Reason.UNAVAILABLE
    host = mailboxes.post("a", appending(done, "host"), bounded=False)
    gate.set()
    await host
    assert len(done) == MAILBOX_LIMIT + 1


async def test_closing_cancels_those_who_wait() -> None:
    tasks = Tasks("test")
    mailboxes = Mailboxes(tasks)
    stuck = mailboxes.post("a", appending([], "a1", asyncio.Event()), bounded=True)
    behind = mailboxes.post("a", appending([], "a2"), bounded=True)
    begun = mailboxes.post("b", appending([], "b1"), bounded=True)
    await begun
    await tasks.close()
    assert stuck.cancelled()
    assert behind.cancelled()


async def test_a_story_is_walked_from_where_one_came_in() -> None:
    watches: Watches[int] = Watches()
    early = watches.follow("a")
    watches.tell("a", Change(chunk={"type": "status", "n": 1}))
    late = watches.follow("a")
    watches.tell("a", Change(chunk={"type": "status", "n": 2}))
    assert (await early.following()).chunk == {"type": "status", "n": 1}
    assert (await (await early.following()).following()).chunk == {"type": "status", "n": 2}
    assert (await late.following()).chunk == {"type": "status", "n": 2}


async def test_a_story_that_nobody_follows_is_forgotten() -> None:
    watches: Watches[int] = Watches()
    change = watches.follow("a")
    for number in range(1000):
        watches.tell("a", Change(chunk={"type": "status", "n": number}))
    del change
    gc.collect()
    assert len(watches._ends) == 0


class Work:
    """Something that owes work: a list of keys, the first of which is pending."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.log: list[str] = []
        self.gate = asyncio.Event()
        self.answered = asyncio.Event()
        self.tasks = Tasks("test")
        self.pending = EffectRunner(self._pending, self._perform, self._answer, lambda: 0, self.tasks)

    def _pending(self, aggregate_id: str) -> Effect | None:
        return Effect(self.keys[0]) if self.keys else None

    async def _perform(self, aggregate_id: str, effect: Effect) -> str:
        self.log.append(f"begin {effect.key}")
        try:
            if effect.key == "breaks":
                raise ZeroDivisionError
            if effect.key != "quick":
                await self.gate.wait()
        except asyncio.CancelledError:
            self.log.append(f"cancelled {effect.key}")
            raise
        return "done"

    def _answer(self, aggregate_id: str, effect: Effect, outcome: str | EffectFailed) -> asyncio.Future[None]:
        told = f"failed: {outcome.reason.split(':')[0]}" if isinstance(outcome, EffectFailed) else outcome
        self.log.append(f"{effect.key} {told}")
        if outcome != "changes nothing":
            self.keys.pop(0)
        self.answered.set()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class Effect:
    def __init__(self, key: str, deadline_s: float = 60.0) -> None:
        self.key = key
        self.not_before_us = 0
        self.deadline_s = 0.05 if key == "hangs" else deadline_s


async def test_what_is_owed_is_done_once_and_then_what_is_owed_next() -> None:
    work = Work()
    work.keys = ["one", "quick"]
    work.pending.reconsider("a")
    work.pending.reconsider("a")
    work.gate.set()
    while work.keys:
        await work.answered.wait()
        work.answered.clear()
    assert work.log == ["begin one", "one done", "begin quick", "quick done"]


async def test_work_that_is_no_longer_owed_is_cancelled_before_the_next_begins() -> None:
    work = Work()
    work.keys = ["slow"]
    work.pending.reconsider("a")
    await _until(lambda: work.log == ["begin slow"])
    work.keys = ["quick"]
    work.pending.reconsider("a")
    await work.answered.wait()
    assert work.log == ["begin slow", "cancelled slow", "begin quick", "quick done"]


async def _until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is so; the test's own time limit is the bound."""
    while not condition():
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(turn.set_result, None)
        await turn


async def test_work_that_hangs_ends_at_its_deadline_as_a_failure() -> None:
    work = Work()
    work.keys = ["hangs"]
    work.pending.reconsider("a")
    await work.answered.wait()
    assert work.log == ["begin hangs", "cancelled hangs", "hangs failed: timed out after 0.05 s"]


@pytest.mark.our_mistake
async def test_a_driver_that_breaks_is_a_failure_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    work.keys = ["breaks"]
    with caplog.at_level(logging.ERROR):
        work.pending.reconsider("a")
        await work.answered.wait()
    assert work.log == ["begin breaks", "breaks failed: internal error"]
    assert "ZeroDivisionError" in caplog.text


async def test_what_waits_for_its_turn_has_all_its_time_when_it_comes() -> None:
    """A fifth start of four at once: its deadline is for the start, not for the queue."""
    turns, first_goes = asyncio.Semaphore(1), asyncio.Event()
    pending = {"first": Effect("first", deadline_s=60.0), "fifth": Effect("fifth", deadline_s=0.02)}
    answers: dict[str, str] = {}
    both = asyncio.Event()
    tasks = Tasks("test")

    async def perform(aggregate_id: str, effect: Effect) -> str:
        if aggregate_id == "first":
            await first_goes.wait()
        return "done"

    def answer(aggregate_id: str, effect: Effect, outcome: str) -> asyncio.Future[None]:
        answers[aggregate_id] = outcome
        pending.pop(aggregate_id)
        if not pending:
            both.set()
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        recorded.set_result(None)
        return recorded

    work = EffectRunner(pending.get, perform, answer, lambda: 0, tasks, gate=lambda effect: turns)
    work.reconsider("first")
    work.reconsider("fifth")
    # Longer than its deadline, by the clock that deadlines go by: it has waited in the queue for all of it by now.
    waited = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, waited.set)
    await waited.wait()
    assert answers == {}, "nobody has had enough yet"
    first_goes.set()
    await both.wait()
    assert answers == {"first": "done", "fifth": "done"}
    await tasks.close()
