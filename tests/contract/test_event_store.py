"""What every event store promises of what is written to it: it can be read, and a command takes effect once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aetherscale.eventstore.chain import EMPTY, StoredCommand, next_head
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.store import (
    AS_STORED,
    Accepted,
    AlreadyAccepted,
    Decoding,
    NewEvent,
    StoredEvent,
    StoredType,
    WrongVersion,
)
from aetherscale.kernel.messages import Metadata
from tests.support.event_logs import EPOCH, NODE, NOW_US, LogWorld, append_of, digest_of, new, write
from tests.support.store_fixtures import store, world

__all__ = ["store", "world"]


# --- what is written can be read ------------------------------------------------------------------------------------


async def test_a_new_log_is_empty_and_knows_whose_it_is(store: LogStore) -> None:
    assert (store.node, store.epoch) == (NODE, EPOCH)
    assert await store.head() == 0
    assert list(await store.read(0)) == []
    assert list(await store.read_stream("vm-1")) == []
    assert await store.accepted("default", "command-1") is None
    assert list(await store.types()) == []
    assert await store.position_at(NOW_US) == 0


async def test_an_append_returns_what_is_now_in_the_log(store: LogStore) -> None:
    appended = await store.append(append_of(write("vm-1", 0, new("Asked", b"\x81\xa1a\x01", 3))))

    expected = StoredEvent(
        seq=1,
        stream="vm-1",
        version=1,
        time_us=NOW_US,
        node=NODE,
        epoch=EPOCH,
        tenant="default",
        actor="user:test",
        command_id="command-1",
        correlation_id="correlation-1",
        causation_id=None,
        event=NewEvent("Asked", 3, b"\x81\xa1a\x01"),
    )
    assert list(appended) == [expected]
    assert list(await store.read(0)) == [expected]
    assert list(await store.read_stream("vm-1")) == [expected]
    assert await store.head() == 1


async def test_the_writes_of_one_append_are_next_to_one_another_in_their_order(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0, new("A"), new("B")), write("name-web", 0, new("C"))))
    await store.append(append_of(write("vm-1", 2, new("D"))))

    placed = [(event.seq, event.stream, event.version, event.type) for event in await store.read(0)]
    assert placed == [(1, "vm-1", 1, "A"), (2, "vm-1", 2, "B"), (3, "name-web", 1, "C"), (4, "vm-1", 3, "D")]


async def test_one_append_may_write_to_one_stream_twice(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0), write("vm-1", 1)))

    assert [event.version for event in await store.read_stream("vm-1")] == [1, 2]


async def test_every_byte_and_every_letter_comes_back(store: LogStore) -> None:
    data = bytes(range(256)) * 300
    names = ["vm-Ünïcødé", "vm-\U0001f4a5", "vm-with\x00nul", "vm-'; DROP TABLE events; --", ""]
    for name in names:
        await store.append(append_of(write(name, 0, new(name or "-", data)), command_id=name))

    assert [(event.stream, event.data, event.command_id) for event in await store.read(0)] == [
        (name, data, name) for name in names
    ]
    assert [(await store.read_stream(name))[0].seq for name in names] == [1, 2, 3, 4, 5]


async def test_pages_end_where_they_are_told_to(store: LogStore) -> None:
    for version in range(7):
        await store.append(append_of(write("vm-1", version)))

    assert [event.seq for event in await store.read(2, 3)] == [3, 4, 5]
    assert [event.seq for event in await store.read(5, 3)] == [6, 7]
    assert list(await store.read(7)) == []
    assert list(await store.read(100)) == []


async def test_reading_can_be_restricted_to_types_of_any_schema(store: LogStore) -> None:
    kinds = [new("A"), new("B"), new("A", schema=2), new("C"), new("B")]
    await store.append(append_of(write("vm-1", 0, *kinds)))

    assert [event.seq for event in await store.read(0, 10, ["A"])] == [1, 3]
    assert [event.seq for event in await store.read(1, 2, ["A", "B"])] == [2, 3]
    assert list(await store.read(0, 10, ["Z"])) == []
    assert list(await store.read(0, 10, [])) == []


async def test_a_page_can_be_read_as_something_else(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0, new("A"), new("B")), write("vm-2", 0, new("A"), new("A"))))

    def metadata(*fields: Any) -> Metadata:
        return Metadata(*fields[:-1])

    reader = LogReader(store.access, Decoding(metadata, AS_STORED.payload, AS_STORED.check))
    found = await reader.read(1, 2, ["A"])
    assert [type(each) for each in found] == [Metadata, Metadata]
    assert [(each.seq, each.stream, each.version) for each in found] == [(3, "vm-2", 1), (4, "vm-2", 2)]


async def test_a_stream_can_be_read_from_a_version_on(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0, new("A"), new("B"), new("C")), write("vm-2", 0)))

    assert [event.type for event in await store.read_stream("vm-1", 1)] == ["B", "C"]
    assert list(await store.read_stream("vm-1", 3)) == []


async def test_the_types_of_a_log_name_the_program_that_wrote_them_first(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0, new("A"), new("B"), new("A", schema=2), new("A"))))

    assert set(await store.types()) == {
        StoredType("A", 1, "0.1.0"),
        StoredType("B", 1, "0.1.0"),
        StoredType("A", 2, "0.1.0"),
    }


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([100, 200, 200, 300], {99: 0, 100: 1, 199: 1, 200: 3, 299: 3, 300: 4, 999: 4}),
        # The clock went back for a while: what came before the first later event.
        ([100, 200, 150, 300], {99: 0, 100: 1, 149: 1, 150: 1, 199: 1, 200: 3, 250: 3, 300: 4, 999: 4}),
        # It went back for good: what came after the greatest time came after the moment.
        ([100, 200, 50, 60], {49: 0, 60: 0, 100: 1, 199: 1, 200: 2, 999: 2}),
        ([100, 200, 200, 60], {200: 3, 999: 3}),
        ([100], {99: 0, 100: 1, 101: 1}),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
async def test_a_moment_means_what_came_before_the_first_later_event(
    world: LogWorld, times: list[int], expected: dict[int, int], sealed: bool
) -> None:
    store = await world.open()
    for version, time_us in enumerate(times):
        await store.append(append_of(write("vm-1", version), time_us=time_us))
    if sealed:
        await store.close()
        world.archive(keep=1)
        store = await world.open()

    assert {moment: await store.position_at(moment) for moment in expected} == expected
    await store.close()


# --- commands are recognised -----------------------------------------------------------------------------------------


async def test_a_repeated_command_has_no_second_effect_and_tells_what_the_first_led_to(store: LogStore) -> None:
    await store.append(append_of(write("vm-9", 0)))
    await store.append(append_of(write("vm-1", 0, new("A"), new("B")), body="create"))

    with pytest.raises(AlreadyAccepted) as refused:
        await store.append(append_of(write("vm-1", 0), body="something else"))

    assert refused.value.accepted == Accepted(digest_of("create"), 2, 3)
    assert await store.accepted("default", "command-1") == Accepted(digest_of("create"), 2, 3)
    assert await store.head() == 3


async def test_a_repeat_in_the_same_batch_is_recognised(store: LogStore) -> None:
    append = append_of(write("vm-1", 0), body="create")
    outcomes = await asyncio.gather(*(store.append(append) for _ in range(5)), return_exceptions=True)

    assert not isinstance(outcomes[0], BaseException)
    for outcome in outcomes[1:]:
        assert isinstance(outcome, AlreadyAccepted)
        assert outcome.accepted == Accepted(digest_of("create"), 1, 1)
    assert await store.head() == 1


async def test_a_command_that_led_to_nothing_is_remembered(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0)))

    assert list(await store.append(append_of(body="stop a stopped one", command_id="nothing"))) == []

    assert await store.accepted("default", "nothing") == Accepted(digest_of("stop a stopped one"), 2, 1)
    with pytest.raises(AlreadyAccepted):
        await store.append(append_of(write("vm-1", 1), body="stop a stopped one", command_id="nothing"))
    await store.append(append_of(write("vm-1", 1)))


async def test_a_refused_command_is_not_remembered(store: LogStore) -> None:
    with pytest.raises(WrongVersion):
        await store.append(append_of(write("vm-1", 4), body="start"))

    assert await store.accepted("default", "command-1") is None
    await store.append(append_of(write("vm-1", 0), body="start"))


async def test_command_ids_of_tenants_are_apart(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0), body="a", tenant="red"))
    await store.append(append_of(write("vm-2", 0), body="b", tenant="blue"))
    await store.append(append_of(write("vm-3", 0), body="c", tenant="re", command_id="dcommand-1"))

    assert await store.accepted("red", "command-1") == Accepted(digest_of("a"), 1, 1)
    assert await store.accepted("blue", "command-1") == Accepted(digest_of("b"), 2, 2)


async def test_what_has_no_key_may_come_twice(store: LogStore) -> None:
    await store.append(append_of(write("vm-1", 0)))
    await store.append(append_of(write("vm-1", 1)))

    assert await store.accepted("default", "command-1") is None


# --- what no log can hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        append_of(write("vm-\ud800", 0)),
        append_of(write("vm-1", 0), command_id="\udfff"),
        append_of(write("vm-1", 0, new("\ud801"))),
        append_of(write("vm-1", 0), time_us=2**63),
        append_of(write("vm-1", 0), time_us=-1),
    ],
    ids=["stream", "command", "type", "late", "early"],
)
async def test_what_cannot_be_stored_is_refused_and_spoils_no_neighbour(store: LogStore, broken: object) -> None:
    assert isinstance(broken, type(append_of()))
    neighbours = [append_of(write(f"vm-{i}", 0), command_id=str(i)) for i in range(10, 14)]
    outcomes = await asyncio.gather(
        *map(store.append, [*neighbours[:2], broken, *neighbours[2:]]), return_exceptions=True
    )

    assert isinstance(outcomes.pop(2), ValueError)
    assert [event.stream for event in await store.read(0)] == ["vm-10", "vm-11", "vm-12", "vm-13"]
    assert not any(isinstance(outcome, BaseException) for outcome in outcomes)


# --- the end of the log, for those who keep it elsewhere -----------------------------------------------------------


async def test_the_durable_head_is_the_end_of_the_chain(store: LogStore) -> None:
    assert store.durable_head() == EMPTY
    events = tuple(await store.append(append_of(write("vm-1", 0, new(), new()), body="make")))
    command = StoredCommand("default", "command-1", Accepted(digest_of("make"), 1, 2))
    first = next_head(EMPTY, events, [command])
    assert store.durable_head() == first

    # A command that led to nothing is a commit too: the hash moves on, the position stays.
    await store.append(append_of(command_id="nothing", body="nothing"))
    second = next_head(first, (), [StoredCommand("default", "nothing", Accepted(digest_of("nothing"), 3, 2))])
    assert (store.durable_head(), second.seq) == (second, 2)

    # What was refused changes nothing.
    with pytest.raises(WrongVersion):
        await store.append(append_of(write("vm-1", 0), command_id="late"))
    assert store.durable_head() == second


async def test_the_durable_head_is_there_before_anybody_is_told_and_after_a_start(world: LogWorld) -> None:
    store = await world.open()
    told: list[int] = []
    store.on_commit(lambda events: told.append(store.durable_head().seq))
    await store.append(append_of(write("vm-1", 0, new(), new())))
    await store.append(append_of(write("vm-1", 2)))
    head = store.durable_head()
    await store.close()

    again = await world.open()
    assert (told, again.durable_head()) == ([2, 3], head)
    await again.close()
