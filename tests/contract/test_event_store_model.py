"""Whatever is asked of it, in whatever order, the file and the fake in memory give the same answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.integrity import verify
from aetherscale.eventstore.store import AlreadyAccepted, Append, WrongVersion
from tests.support.event_logs import LogWorld, MemoryWorld, SqliteWorld, append_of, new, read_all, write

STREAMS = ["vm-1", "vm-2", "name-web"]
KINDS = ["A", "B"]

events = st.builds(new, st.sampled_from(KINDS), st.binary(max_size=20), st.integers(1, 2))
writes = st.builds(
    lambda stream, expected, made: write(stream, expected, *made) if made else write(stream, expected, new()),
    st.sampled_from(STREAMS),
    st.one_of(st.none(), st.integers(0, 6)),
    st.lists(events, max_size=3),
)
appends = st.builds(
    lambda made, command, body, tenant, time: append_of(
        *made, command_id=command, body=body, tenant=tenant, time_us=time
    ),
    st.lists(writes, max_size=3),
    st.sampled_from(["c1", "c2", "c3"]),
    st.one_of(st.none(), st.sampled_from(["x", "y"])),
    st.sampled_from(["default", "other"]),
    st.integers(0, 1000),
)
rounds = st.lists(
    st.one_of(st.lists(appends, min_size=1, max_size=5), st.just("reopen"), st.integers(0, 4)), max_size=8
)
"""Appends at one time; closing and opening; sealing all but so many events in between."""


def plain(outcome: object) -> Any:
    """An outcome as a value that can be compared."""
    match outcome:
        case WrongVersion():
            return ("wrong version", outcome.stream, outcome.expected, outcome.actual)
        case AlreadyAccepted():
            return ("already accepted", outcome.accepted)
        case BaseException():
            raise outcome
        case _:
            return list(outcome)  # type: ignore[call-overload]


async def answers_of(store: LogStore) -> list[Any]:
    """Everything that can be asked of a store."""
    return [
        await read_all(store, 3),
        [list(await store.read_stream(stream, after)) for stream in STREAMS for after in (0, 2)],
        [list(await store.read(after, 2, types)) for after in (0, 3) for types in (["A"], ["A", "B"], [])],
        [await store.accepted(tenant, command) for tenant in ("default", "other") for command in ("c1", "c2", "c3")],
        [await store.position_at(time) for time in (0, 250, 500, 1000)],
        sorted((kind.type, kind.schema) for kind in await store.types()),
        await store.head(),
    ]


async def play(world: LogWorld, script: Sequence[Sequence[Append] | str | int]) -> list[Any]:
    """The outcomes of every round, and everything that the log says after it."""
    answers: list[Any] = []
    store = await world.open()
    for step in script:
        if isinstance(step, (str, int)):
            await store.close()
            if isinstance(step, int):
                world.archive(keep=step)
            store = await world.open()
        else:
            outcomes = await asyncio.gather(*map(store.append, step), return_exceptions=True)
            answers.append([plain(outcome) for outcome in outcomes])
        answers.append(await answers_of(store))
    await store.close()
    return answers


@settings(max_examples=60)
@given(rounds)
def test_the_file_and_its_fake_are_the_same(script: list[list[Append] | str | int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = SqliteWorld(Path(directory))
        assert asyncio.run(play(world, script)) == asyncio.run(play(MemoryWorld(), script))
        assert verify(world.path).problems == ()
