"""The clock of the host is set, back or forth: nothing waits for hours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from aetherscale.bus.tasks import Tasks
from aetherscale.runtime.effects import LONGEST_WAIT_S, EffectRunner

HOUR_US = 3600 * 1_000_000


class Effect(Struct, frozen=True):
    key: str
    not_before_us: int
    deadline_s: float = 10.0


@pytest.mark.parametrize(
    ("put_off_us", "waits"),
    [(2 * HOUR_US, [LONGEST_WAIT_S]), (16_000_000, [16.0]), (0, []), (-HOUR_US, [])],
)
async def test_work_that_was_put_off_by_a_clock_that_went_back_is_not_waited_for_longer(
    monkeypatch: pytest.MonkeyPatch, put_off_us: int, waits: list[float]
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    now_us = 10 * HOUR_US
    done = asyncio.Event()
    pending: list[Effect] = [Effect("boot-1", now_us + put_off_us)]

    async def perform(aggregate_id: str, effect: Any) -> str:
        return "performed"

    def answer(aggregate_id: str, effect: Any, outcome: str) -> asyncio.Future[Any]:
        pending.clear()
        done.set()
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    tasks = Tasks("test")
    work = EffectRunner(
        lambda aggregate_id: pending[0] if pending else None,
        perform,
        answer,
        lambda: now_us,
        tasks,
    )
    monkeypatch.setattr(asyncio, "sleep", sleep)
    work.reconsider("vm-1")
    await done.wait()
    work.close()
    await tasks.close()
    assert slept == waits
