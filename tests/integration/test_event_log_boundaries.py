"""The edges of a log: exactly at an event, at the end of a segment, one event, none at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aetherscale.debugger import maintenance
from aetherscale.debugger.past import opened
from aetherscale.eventstore.archive import archive
from aetherscale.eventstore.store import AlreadyAccepted
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.times import to_rfc3339
from tests.support.event_logs import NOW_US, SqliteWorld, append_of, digest_of, new, open_reader, write

SECOND_US = 1_000_000
KINDS = ()


@pytest.fixture
def world(tmp_path: Path) -> SqliteWorld:
    return SqliteWorld(tmp_path)


async def of_seconds(world: SqliteWorld, count: int) -> None:
    """A log with one event a second; each is a commit."""
    store = await world.open()
    for number in range(count):
        await store.append(append_of(write("vm-1", number), time_us=NOW_US + number * SECOND_US))
    await store.close()


def at(number: int, microseconds: int = 0) -> str:
    """When event `number` was recorded, or so much later."""
    return to_rfc3339(NOW_US + (number - 1) * SECOND_US + microseconds)


@pytest.mark.parametrize(
    ("before", "keep", "sealed_to"),
    [
        ("1", 0, 0),
        ("2", 0, 1),
        ("5", 0, 4),
        ("9", 0, 8),
        ("10", 0, 9),
        ("1000", 0, 9),  # the last commit is never sealed
        (at(5), 0, 4),
        (at(5, 1), 0, 5),
        (at(5, -1), 0, 4),
        (at(1), 0, 0),
        (at(11), 0, 9),
        (None, 0, 9),
        (None, 1, 9),
        (None, 2, 8),
        (None, 9, 1),
        (None, 10, 0),
        (None, 11, 0),
    ],
)
async def test_what_is_sealed_ends_exactly_where_it_was_told_to(
    world: SqliteWorld, monkeypatch: pytest.MonkeyPatch, before: str | None, keep: int, sealed_to: int
) -> None:
    await of_seconds(world, 10)
    monkeypatch.setattr("aetherscale.eventstore.archive.SEGMENT_EVENTS", 1)
    monkeypatch.setattr(archive, "__kwdefaults__", {"segment_events": 1})
    place = world.path.parent
    assert maintenance.preview(place, before=before, now_us=NOW_US, keep=keep).sealed_to == sealed_to
    done = maintenance.archive(place, before=before, now_us=NOW_US, keep=keep, report=lambda done, total: None)
    assert done.sealed_to == sealed_to


@pytest.mark.parametrize("sealed_to", [0, 4, 5, 6, 9])
async def test_moments_are_exact_wherever_the_segments_end(world: SqliteWorld, sealed_to: int) -> None:
    await of_seconds(world, 10)
    if sealed_to:
        archive(world.path, lambda reading: sealed_to, segment_events=1)
    async with opened(world.path.parent, KINDS) as log:
        assert [await log.position(moment) for moment in (at(5, -1), at(5), at(5, 1), at(6), "5", "0", "10")] == [
            4, 5, 5, 6, 5, 0, 10,
        ]  # fmt: skip
        assert [await log.before(moment) for moment in (at(5, -1), at(5), at(5, 1), "5", "1", "0")] == [
            4,
            4,
            5,
            4,
            0,
            0,
        ]
        assert await log.position("10s", NOW_US + 14 * SECOND_US) == 5
        assert await log.position(None) == 10
        with pytest.raises(Refused, match="the log ends at event 10, got 11"):
            await log.position("11")


@pytest.mark.parametrize("count", [0, 1])
async def test_a_log_of_no_event_or_one_answers_everything(world: SqliteWorld, count: int) -> None:
    await of_seconds(world, count)
    place = world.path.parent
    assert maintenance.verify(place, KINDS).events == count or count  # the type of the one is not known
    assert maintenance.info(place).events == count
    lines: list[bytes] = []
    assert maintenance.export(place, lines.append).events == count
    assert maintenance.preview(place, before=None, now_us=NOW_US, keep=0).sealed_to == 0
    async with opened(place, KINDS) as log:
        assert [await log.position(moment) for moment in (at(1, -1), at(1), at(9), "0")] == [0, count, count, 0]
        assert await log.before(at(9)) == count
        assert await log.head() == count
    copy = place / "copy"
    assert maintenance.import_(copy, lines, epoch="1111111111111111", now_us=NOW_US).events == count
    reader = await open_reader(copy / "events.db")
    assert (await reader.head(), reader.epoch == "1111111111111111") == (count, bool(count))
    await reader.close()


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("together", [False, True])
async def test_one_key_means_one_command_of_its_tenant_whatever_else_is_the_same(
    world: SqliteWorld, sealed: bool, together: bool
) -> None:
    """The same key with the same body for another object, with another body, and of another tenant."""
    store = await world.open()
    first = append_of(write("vm-1", 0, new("Stopped")), command_id="key", body="stop")
    if not together:
        await store.append(first)
        await store.append(append_of(write("vm-2", 0), command_id="else"))
    if sealed:
        await store.close()
        world.archive(1)
        store = await world.open()
    tries = [
        append_of(write("vm-3", 0, new("Stopped")), command_id="key", body="stop"),
        append_of(write("vm-3", 0, new("Stopped")), command_id="key", body="start"),
        append_of(write("vm-3", 0, new("Stopped")), command_id="key", body="stop", tenant="other"),
    ]
    outcomes = await asyncio.gather(
        *(store.append(each) for each in ([first, *tries] if together else tries)), return_exceptions=True
    )
    *refused, taken = outcomes[-3:]
    for each in refused:
        assert isinstance(each, AlreadyAccepted)
        assert (each.accepted.first_seq, each.accepted.last_seq) == (1, 1)
        assert each.accepted.digest == digest_of("stop")
    assert not isinstance(taken, BaseException)
    assert [(event.stream, event.tenant, event.version) for event in taken] == [("vm-3", "other", 1)]
    accepted = await store.accepted("other", "key")
    assert accepted is not None
    assert accepted.first_seq == taken[0].seq
    await store.close()
