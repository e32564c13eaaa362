"""A log as lines and back, and what is told of a log without opening it for writing."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.integrity import info, verify
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.store import (
    AlreadyAccepted,
    BadImport,
    Damaged,
    Locked,
    NotALog,
    NotEmpty,
    StoredEvent,
    StoredType,
)
from aetherscale.eventstore.transfer import export, import_
from aetherscale.kernel.messages import Event
from tests.support.event_logs import EPOCH, NODE, NOW_US, SqliteWorld, append_of, new, open_reader, read_all, write

NEW_EPOCH = "1111111111111111"
LATER_US = NOW_US + 5_000_000


@pytest.fixture
def world(tmp_path: Path) -> SqliteWorld:
    (tmp_path / "here").mkdir()
    return SqliteWorld(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there" / "events.db"


async def filled(world: SqliteWorld, commits: int = 5) -> list[StoredEvent]:
    store = await world.open()
    for number in range(commits):
        await store.append(
            append_of(
                write(f"vm-{number}", 0, new("Made", b"\x82\xa1a\xc4\x02\x00\xff\xa1b\x01"), new("Named", b"\x90", 2)),
                command_id=f"command-{number}",
                body=f"body-{number}",
                time_us=NOW_US + number,
            )
        )
    await store.append(append_of(command_id="nothing", body="led to nothing"))
    events = await read_all(store)
    await store.close()
    return events


def exported(path: Path) -> list[bytes]:
    lines: list[bytes] = []
    export(path, lines.append)
    return lines


def imported(lines: list[bytes], path: Path) -> None:
    import_(lines, path, epoch=NEW_EPOCH, now_us=LATER_US)


async def test_an_import_of_an_export_is_the_same_log(world: SqliteWorld, there: Path) -> None:
    events = await filled(world)
    lines: list[bytes] = []
    assert (export(world.path, lines.append).events, len(lines)) == (10, 1 + 10 + 6 + 6 + 1)
    result = import_(lines, there, epoch=NEW_EPOCH, now_us=LATER_US)

    assert (result.events, result.commands) == (10, 6)
    assert {entry.name for entry in there.parent.iterdir()} == {"events.db", "events.head", "events.lock"}
    assert verify(there).problems == ()
    here, copy = await open_reader(world.path), await open_reader(there)
    assert await read_all(copy) == events
    for command in ("command-0", "command-4", "nothing", "unheard-of"):
        assert await copy.accepted("default", command) == await here.accepted("default", command)
    assert await copy.types() == await here.types()
    await here.close()
    await copy.close()
    assert sorted(exported(there)[1:-1]) == sorted(lines[1:-1]), "the events and commands are the same lines"


async def test_what_is_written_after_an_import_is_of_a_new_epoch(world: SqliteWorld, there: Path) -> None:
    events = await filled(world)
    imported(exported(world.path), there)

    store = await open_store(there, node=NODE, epoch="unused", now_us=LATER_US, reserve_bytes=0)
    assert (store.node, store.epoch) == (NODE, NEW_EPOCH)
    with pytest.raises(AlreadyAccepted):
        await store.append(append_of(write("vm-0", 2), command_id="command-0", body="body-0"))
    appended = await store.append(append_of(write("vm-0", 2)))
    assert [(event.seq, event.version, event.epoch) for event in appended] == [(11, 3, NEW_EPOCH)]
    assert [event.epoch for event in await read_all(store)] == [EPOCH] * 10 + [NEW_EPOCH]
    assert (await read_all(store))[:10] == events
    await store.close()
    assert verify(there).problems == ()

    elsewhere = there.parent / "third.db"
    imported(exported(there), elsewhere)
    reader = await open_reader(elsewhere)
    assert [event.epoch for event in await read_all(reader)] == [EPOCH] * 10 + [NEW_EPOCH]
    await reader.close()


async def test_an_empty_log_goes_over_too(world: SqliteWorld, there: Path) -> None:
    await (await world.open()).close()
    imported(exported(world.path), there)
    assert verify(there).problems == ()
    assert info(there).events == 0


async def test_an_export_has_the_form_that_events_have_everywhere(world: SqliteWorld) -> None:
    await filled(world, 1)
    first, event, *_ = map(json.loads, exported(world.path))
    assert first["line"] == "log"
    assert event == {
        "line": "event",
        "seq": 1,
        "stream": "vm-0",
        "version": 1,
        "type": "Made",
        "schema": 1,
        "time": "2026-01-01T00:00:00.000000Z",
        "node": NODE,
        "actor": "user:test",
        "command-id": "command-0",
        "correlation-id": "correlation-1",
        "causation-id": None,
        "data": {"a": "AP8=", "b": 1},
        "tenant": "default",
        "epoch": EPOCH,
        "payload": "gqFhxAIA/6FiAQ==",
    }


async def test_an_export_beside_a_running_node_is_of_one_moment(world: SqliteWorld, there: Path) -> None:
    store = await world.open()
    await store.append(append_of(write("vm-1", 0)))
    imported(exported(world.path), there)
    await store.append(append_of(write("vm-1", 1)))
    assert verify(world.path).events == 2
    await store.close()
    assert verify(there).events == 1


async def test_what_a_damaged_log_still_proves_is_exported(world: SqliteWorld, there: Path) -> None:
    events = await filled(world)
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER events_keep")
        connection.execute("UPDATE events SET data = x'00' WHERE seq = 7")

    lines: list[bytes] = []
    result = export(world.path, lines.append)
    assert result.events == 6
    assert result.damage is not None
    assert "log damaged at 7" in result.damage
    imported(lines, there)
    reader = await open_reader(there)
    assert await read_all(reader) == events[:6]
    await reader.close()


async def test_an_import_goes_over_nothing(world: SqliteWorld, there: Path) -> None:
    await filled(world)
    lines = exported(world.path)
    imported(lines, there)
    before = there.read_bytes()
    with pytest.raises(NotEmpty, match="10 events already"):
        imported(lines, there)
    assert there.read_bytes() == before

    there.write_bytes(b"Dear diary")
    with pytest.raises(NotALog):
        imported(lines, there)


async def test_an_import_into_the_log_of_a_running_node_is_refused(world: SqliteWorld, there: Path) -> None:
    await filled(world)
    running = await SqliteWorld(there.parent).open()
    with pytest.raises(Locked):
        imported(exported(world.path), there)
    await running.close()
    imported(exported(world.path), there)
    assert verify(there).events == 10


def altered(line: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(line), **fields}).encode() + b"\n"


def signed(lines: list[bytes]) -> list[bytes]:
    """Lines with an end that fits them, as somebody makes it who knows how."""
    events = sum(b'"seq"' in line for line in lines)
    commands = sum(b'"digest"' in line for line in lines)
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    end = {"line": "end", "events": events, "commands": commands, "sha256": digest}
    return [*lines, json.dumps(end).encode() + b"\n"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: [], "line 1: the export is cut off"),
        (lambda lines: lines[:-1], "cut off"),
        (lambda lines: lines[:3], "cut off"),
        (lambda lines: lines[1:], "line 1: this is not the export of a log"),
        (lambda lines: [lines[0], *lines[2:]], "have been altered"),
        (lambda lines: signed([lines[0], *lines[2:-1]]), "event 2, version 2 of vm-0: expected event 1, version 1"),
        (lambda lines: signed([*lines[:2], *lines[1:-1]]), "event 1, version 1 of vm-0: expected event 2, version 2"),
        (lambda lines: [altered(lines[0], format=3), *lines[1:]], "line 1: the lines have format 3"),
        (lambda lines: [lines[0], *lines], "line 2: a second export"),
        (lambda lines: [*lines[:2], b"{]\n", *lines[3:]], "line 3: "),
        (lambda lines: [*lines[:2], altered(lines[2], version="two"), *lines[3:]], r"line 3: .*\$.version"),
        (lambda lines: [*lines[:2], altered(lines[2], time="yesterday"), *lines[3:]], "line 3: .*yesterday"),
        (lambda lines: [*lines[:2], altered(lines[2], actor="user:other"), *lines[3:]], "have been altered"),
        (lambda lines: [*lines[:-2], lines[-1]], "have been altered"),
        (lambda lines: signed([*lines[:2], altered(lines[2], actor="user:other"), *lines[3:-1]]), "has another hash"),
    ],
)
async def test_lines_that_are_no_whole_export_are_refused(
    world: SqliteWorld, there: Path, change: Callable[[list[bytes]], list[bytes]], match: str
) -> None:
    await filled(world)
    with pytest.raises(BadImport, match=match):
        imported(change(exported(world.path)), there)
    assert {entry.name for entry in there.parent.iterdir()} == {"events.lock"}, "nothing is left of it"
    imported(exported(world.path), there)


async def test_a_log_tells_what_it_is(world: SqliteWorld) -> None:
    await filled(world)
    told = info(world.path)
    assert (told.node, told.epoch, told.epochs, told.created_us) == (NODE, EPOCH, 1, NOW_US)
    assert (told.events, told.streams, told.commands, told.commits) == (10, 5, 6, 6)
    assert (told.first_us, told.last_us) == (NOW_US, NOW_US + 4)
    assert told.types == (StoredType("Made", 1, "0.1.0"), StoredType("Named", 2, "0.1.0"))
    assert told.size_bytes == world.path.stat().st_size
    assert told.wal_bytes == 0


async def test_verifying_tells_of_events_that_cannot_be_decoded(world: SqliteWorld) -> None:
    class Made(Event, frozen=True):
        a: bytes
        b: int

    await filled(world, 2)
    found = verify(world.path, Codec([Made]))
    assert found.events == 4, "they are as they were written"
    assert [(problem.seq, "Named of schema 2" in problem.message) for problem in found.problems] == [
        (2, True),
        (4, True),
    ]


def test_there_is_nothing_to_tell_where_there_is_no_log(there: Path) -> None:
    for ask in (verify, info, lambda path: export(path, lambda line: None)):
        with pytest.raises(NotALog):
            ask(there)


async def test_a_log_whose_header_is_damaged_has_nothing_to_export(world: SqliteWorld) -> None:
    await filled(world)
    with closing(sqlite3.connect(world.path, isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER epochs_stay")
        connection.execute("DELETE FROM epochs")
    with pytest.raises(Damaged, match="does not name its node"):
        exported(world.path)
    assert verify(world.path).problems[0].seq == 1
