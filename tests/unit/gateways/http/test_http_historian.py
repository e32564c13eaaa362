"""The historian: a real process on a real log. It answers in its turn, dies without harm, and ends when nobody asks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aetherscale.gateways.http import historian as historians
from aetherscale.gateways.http import historianmain
from aetherscale.gateways.http.historian import Historian
from aetherscale.kernel.errors import Reason, Refused
from tests.support.http_node import until
from tests.support.pasts import NODE, TENANT, Truth, written

EVENTS = 300


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state_dir = tmp_path_factory.mktemp("log") / "s"
    asyncio.run(written(state_dir, EVENTS, seed=1))
    return state_dir


@pytest.fixture
async def historian(log: Path) -> AsyncIterator[Historian]:
    asked = Historian(log, TENANT)
    yield asked
    await asked.close()


async def counts(historian: Historian, position: int) -> dict[str, int]:
    answer = await historian.ask("state", position=position, kinds=[], limit=0)
    found: dict[str, int] = json.loads(answer.body)["counts"]
    return found


def truth(log: Path, position: int) -> dict[str, int]:
    known = Truth(log).at(position)
    return {
        kind: sum(each.state.phase != "deleted" for each in aggregates.values())
        for kind, (_, aggregates, *_) in known.items()
    }


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_it_is_started_by_the_first_question_and_tells_the_truth(log: Path, historian: Historian) -> None:
    unstarted = historian.pid
    assert unstarted is None
    for position in (0, 1, 150, EVENTS):
        assert await counts(historian, position) == truth(log, position)
    assert historian.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, historian.pid) == historianmain.LOWEST_PRIORITY == 19
    [limit] = [
        line for line in Path(f"/proc/{historian.pid}/limits").read_text().splitlines() if "Max data size" in line
    ]
    assert str(128 * 1024 * 1024) in limit


async def test_questions_at_one_time_are_answered_each_with_its_own(log: Path, historian: Historian) -> None:
    positions = list(range(0, EVENTS, 20))
    found = await asyncio.gather(*(counts(historian, position) for position in positions))
    assert found == [truth(log, position) for position in positions]


async def test_where_it_died_the_question_is_asked_of_a_new_one(historian: Historian) -> None:
    before = await counts(historian, 100)
    dead = historian.pid
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    assert await counts(historian, 100) == before
    assert historian.pid != dead
    assert not is_alive(dead)


async def test_it_dies_beside_a_question_and_another_one_answers(historian: Historian) -> None:
    before = await counts(historian, 100)
    assert historian.pid is not None
    dead = historian.pid
    os.kill(dead, signal.SIGSTOP)
    asking = asyncio.ensure_future(counts(historian, 100))
    await asyncio.sleep(0)
    os.kill(dead, signal.SIGKILL)
    assert await asking == before
    assert historian.pid != dead


async def test_one_that_dies_of_each_question_is_said_to(historian: Historian) -> None:
    """A question that there is not is a mistake of ours, of which the process ends; nothing else does it at will."""
    with pytest.raises(Refused) as refused:
        await historian.ask("nonsense")
    assert (refused.value.reason, refused.value.retryable) == (Reason.UNAVAILABLE, True)
    assert "died 2 times" in refused.value.message
    assert historian.pid is None
    assert await counts(historian, 0), "the next question is served"


async def test_it_ends_when_nobody_asks_and_comes_back(historian: Historian, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await counts(historian, 100)
    first = historian.pid
    assert first is not None
    monkeypatch.setattr(historians, "IDLE_S", 0.05)
    assert await counts(historian, 100) == before
    await until(lambda: not is_alive(first))
    assert await counts(historian, 100) == before


async def test_it_is_ended_where_it_takes_too_long(historian: Historian, monkeypatch: pytest.MonkeyPatch) -> None:
    await counts(historian, 100)
    assert historian.pid is not None
    stopped = historian.pid
    os.kill(stopped, signal.SIGSTOP)
    monkeypatch.setattr(historians, "ANSWER_S", 0.1)
    with pytest.raises(Refused) as refused:
        await counts(historian, 100)
    assert refused.value.reason is Reason.DEADLINE
    assert not is_alive(stopped)
    monkeypatch.undo()
    assert await counts(historian, 0)


async def test_one_question_too_many_is_refused(historian: Historian, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(historians, "MAX_WAITING", 1)
    first = asyncio.ensure_future(counts(historian, 100))
    await asyncio.sleep(0)
    with pytest.raises(Refused) as refused:
        await counts(historian, 100)
    assert (refused.value.reason, refused.value.retryable) == (Reason.UNAVAILABLE, True)
    await first
    assert await counts(historian, 0)


async def test_a_caller_that_leaves_disturbs_nobody(log: Path, historian: Historian) -> None:
    leaving = asyncio.ensure_future(counts(historian, 100))
    await asyncio.sleep(0)
    staying = asyncio.ensure_future(counts(historian, 150))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == truth(log, 150)


async def test_a_refusal_comes_as_it_is(historian: Historian) -> None:
    with pytest.raises(Refused) as refused:
        await historian.ask("position", at="soon", now_us=0, field="from")
    assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, "from")
    with pytest.raises(Refused) as refused:
        await historian.ask("object", kind="vm", reference="none", position=100)
    assert refused.value.reason is Reason.NOT_FOUND
    assert refused.value.remedy


async def test_without_a_log_it_says_so_and_looks_again(tmp_path: Path) -> None:
    historian = Historian(tmp_path / "s", TENANT)
    try:
        with pytest.raises(Refused) as refused:
            await counts(historian, 0)
        assert refused.value.reason is Reason.NOT_FOUND
        await written(tmp_path / "s", 10, seed=2)
        answer = await historian.ask("state", position=1, kinds=[], limit=None)
        assert json.loads(answer.body)["node"] == NODE
    finally:
        await historian.close()


async def test_an_answer_that_is_too_large_is_refused(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aetherscale.components import kinds
    from aetherscale.debugger.past import opened
    from aetherscale.gateways.http import answers

    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 100)
    async with opened(log, kinds()) as past:
        with pytest.raises(Refused) as refused:
            await answers.Answers(past, TENANT).ask("state", position=EVENTS, kinds=[], limit=None)
    assert refused.value.reason is Reason.TOO_LARGE


async def test_what_takes_more_memory_than_it_may_is_refused(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose answers take a GiB, under the bound that the historian sets itself."""
    program = (
        "import sys; from aetherscale.gateways.http import answers, historianmain\n"
        "async def hungry(self, question): return bytearray(1 << 30)\n"
        "answers.Answers.answer = hungry\n"
        "sys.exit(historianmain.main(sys.argv[1:]))"
    )
    historian = Historian(log, TENANT)
    monkeypatch.setattr(historian, "_command", (sys.executable, "-c", program, str(log), TENANT))
    try:
        with pytest.raises(Refused) as refused:
            await counts(historian, 0)
        assert refused.value.reason is Reason.TOO_LARGE
        assert "128 MiB" in refused.value.message
    finally:
        await historian.close()


async def test_it_ends_with_the_node(historian: Historian) -> None:
    await counts(historian, 0)
    pid = historian.pid
    assert pid is not None
    await historian.close()
    assert not is_alive(pid)
