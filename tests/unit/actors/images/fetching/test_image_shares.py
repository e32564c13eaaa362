"""Turns: a few at once, fair between tenants, and none is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.images.fetching.shares import Shares


class Users:
    """Those who have a turn, in the order in which they got it."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.had: list[str] = []
        self.having: Counter[str] = Counter()
        self.told: list[tuple[str, int]] = []

    def begin(self, tenant: str) -> tuple[asyncio.Task[None], asyncio.Event]:
        end = asyncio.Event()
        return asyncio.ensure_future(self._use(tenant, end)), end

    async def _use(self, tenant: str, end: asyncio.Event) -> None:
        async with self.shares.turn(tenant, lambda at_once: self.told.append((tenant, at_once))):
            self.had.append(tenant)
            self.having[tenant] += 1
            try:
                await end.wait()
            finally:
                self.having[tenant] -= 1


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_whoever_has_fewest_is_next_and_the_others_are_told_of_the_wait() -> None:
    users = Users(Shares(3, 2))
    begun = [users.begin(tenant) for tenant in ("a", "a", "a", "b", "a", "b", "c")]
    await settle()
    assert users.had == ["a", "a", "b"]
    assert users.told == [("a", 2), ("a", 3), ("b", 3), ("c", 3)]
    assert users.shares.is_crowded
    begun[0][1].set()
    await settle()
    assert users.had == ["a", "a", "b", "c"], "c had none"
    for _, end in begun:
        end.set()
    await asyncio.gather(*(task for task, _ in begun))
    assert Counter(users.had) == {"a": 4, "b": 2, "c": 1}
    assert not users.shares.is_crowded


async def test_a_tenant_never_has_more_than_its_share_however_much_is_free() -> None:
    users = Users(Shares(10, 2))
    begun = [users.begin("a") for _ in range(3)]
    await settle()
    assert users.having["a"] == 2
    for task, _ in begun:
        task.cancel()
    await asyncio.wait([task for task, _ in begun])


@given(st.lists(st.tuples(st.sampled_from(["begin a", "begin b", "begin c", "end", "cancel"]), st.integers(0, 9))))
def test_no_turn_is_lost_whoever_is_cancelled_when(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        users = Users(Shares(3, 2))
        begun: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for step, which in steps:
            if step.startswith("begin"):
                begun.append(users.begin(step[-1]))
            elif begun:
                task, end = begun[which % len(begun)]
                if step == "end":
                    end.set()
                task.cancel() if step == "cancel" else None
            if which % 2:
                await settle()
            assert users.having.total() <= 3
            assert max(users.having.values(), default=0) <= 2
        for _, end in begun:
            end.set()
        for task, _ in begun:
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 30)
        assert not users.shares.is_crowded
        last = [users.begin(tenant) for tenant in ("x", "x", "y")]
        await settle()
        assert users.having.total() == 3, "all turns are to be had again"
        for task, _ in last:
            task.cancel()
        await asyncio.wait([task for task, _ in last])

    asyncio.run(run())


async def test_a_turn_that_comes_together_with_a_cancellation_goes_on_to_the_next() -> None:
    users = Users(Shares(1, 1))
    end = asyncio.Event()

    async def have_and_cancel() -> None:
        async with users.shares.turn("a", lambda at_once: None):
            await end.wait()
        second.cancel()  # in the very step in which the turn is passed on

    first = asyncio.ensure_future(have_and_cancel())
    await settle()
    (second, _), (third, third_end) = (users.begin(tenant) for tenant in ("b", "c"))
    await settle()
    end.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    await settle()
    assert users.had == ["c"]
    third_end.set()
    await third
