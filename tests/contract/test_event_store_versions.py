"""Optimistic concurrency in every event store: a write at another version than the stream has changes nothing."""

from __future__ import annotations

import asyncio

import pytest

from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.store import (
    StreamWrite,
    WrongVersion,
)
from tests.support.event_logs import append_of, new, write
from tests.support.store_fixtures import store, world

__all__ = ["store", "world"]


@pytest.mark.parametrize("expected", [0, 2, 5])
async def test_an_append_at_another_version_is_refused_and_changes_nothing(store: LogStore, expected: int) -> None:
    await store.append(append_of(write("vm-1", 0)))

    with pytest.raises(WrongVersion) as refused:
        await store.append(append_of(write("vm-2", 0), write("vm-1", expected)))

    assert (refused.value.stream, refused.value.expected, refused.value.actual) == ("vm-1", expected, 1)
    assert [event.stream for event in await store.read(0)] == ["vm-1"]
    assert list(await store.read_stream("vm-2")) == []
    await store.append(append_of(write("vm-2", 0)))


async def test_writes_at_any_version_do_not_meet_one_another(store: LogStore) -> None:
    """Any number at one time, in one commit, each in its place; who names a version is refused if it has moved."""
    appends = [
        store.append(append_of(write("use-1", None, new("Began")), write(f"vm-{number}", 0), command_id=f"c{number}"))
        for number in range(5)
    ]
    late = store.append(append_of(StreamWrite("use-1", 0, ()), write("image-1", 0), command_id="late"))
    *taken, refused = await asyncio.gather(*appends, late, return_exceptions=True)
    assert [[event.version for event in events if event.stream == "use-1"] for events in taken] == [  # type: ignore[union-attr]
        [1], [2], [3], [4], [5],
    ]  # fmt: skip
    assert isinstance(refused, WrongVersion)
    assert (refused.stream, refused.expected, refused.actual) == ("use-1", 0, 5)
    assert list(await store.read_stream("image-1")) == []
    await store.append(append_of(StreamWrite("use-1", 5, ()), write("image-1", 0), command_id="anew"))


async def test_a_write_without_events_is_a_condition(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0)))
    condition = StreamWrite("vm-1", 1, ())

    assert len(await store.append(append_of(condition, write("vm-2", 0)))) == 1
    with pytest.raises(WrongVersion):
        await store.append(append_of(StreamWrite("vm-1", 0, ()), write("vm-3", 0)))
    assert await store.head() == 2


async def test_of_many_who_write_to_one_version_one_wins(store: LogStore) -> None:
    appends = [append_of(write("vm-1", 0, new(f"T{i}")), command_id=f"command-{i}") for i in range(20)]
    outcomes = await asyncio.gather(*map(store.append, appends), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes[1:]] == [WrongVersion] * 19
    assert [event.type for event in await store.read(0)] == ["T0"]


async def test_appends_become_durable_in_the_order_of_the_calls(store: LogStore) -> None:
    appends = [append_of(write("vm-1", version), command_id=f"command-{version}") for version in range(50)]
    await asyncio.gather(*map(store.append, appends))

    assert [event.command_id for event in await store.read(0)] == [f"command-{version}" for version in range(50)]


async def test_positions_have_no_gap_whatever_is_refused(store: LogStore) -> None:
    appends = [append_of(write(f"vm-{i % 7}", i // 7 if i % 3 else 0), command_id=str(i)) for i in range(60)]
    outcomes = await asyncio.gather(*map(store.append, appends), return_exceptions=True)

    refused = sum(isinstance(outcome, WrongVersion) for outcome in outcomes)
    assert 0 < refused < 60
    assert [event.seq for event in await store.read(0)] == list(range(1, 61 - refused))
