"""A log that was rolled back or rewritten, with its head and all, is seen by heads that were kept elsewhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aetherscale.debugger import maintenance
from aetherscale.eventstore.archive import archive
from aetherscale.eventstore.integrity import verify, witness
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.store import BadImport
from aetherscale.eventstore.transfer import export, import_
from aetherscale.eventstore.witness import Witnessed, decode, decode_lines, encode
from aetherscale.kernel.errors import Refused
from tests.support.cli import MakeNode, good, simulated_node, told
from tests.support.event_logs import EPOCH, NODE, NOW_US, SqliteWorld, append_of, filled, new, write

TIMES = [f"2026-01-01T00:0{minute}:00.000000Z" for minute in range(10)]


@pytest.fixture
def world(tmp_path: Path) -> SqliteWorld:
    (tmp_path / "state").mkdir()
    return SqliteWorld(tmp_path / "state")


async def grown(world: SqliteWorld, heads: int = 3) -> list[Witnessed]:
    """A log that was witnessed as it grew, two commits at a time; the first time while it was empty."""
    await (await world.open()).close()
    kept = [witness(world.path, TIMES[0])]
    for time in TIMES[1 : heads + 1]:
        await (await filled(world, 2)).close()
        kept.append(witness(world.path, time))
    return kept


def found(path: Path, kept: list[Witnessed]) -> tuple[int | None, list[str]]:
    verified = verify(path, None, kept)
    return verified.witnessed, [problem.message for problem in verified.problems]


async def test_a_well_log_has_every_head_that_was_witnessed(world: SqliteWorld) -> None:
    kept = await grown(world)
    assert [each.head_seq for each in kept] == [0, 4, 8, 12]
    assert found(world.path, kept) == (4, [])
    await (await filled(world, 1)).close()
    assert found(world.path, kept) == (4, [])
    assert verify(world.path).witnessed is None


async def test_the_store_tells_while_it_runs_what_the_file_says_afterwards(world: SqliteWorld) -> None:
    store = await filled(world)
    told_head = store.durable_head()
    assert witness(world.path, TIMES[0]) == Witnessed(NODE, EPOCH, told_head.seq, told_head.link.hex(), TIMES[0])
    await store.close()
    assert witness(world.path, TIMES[0]).head_hash == told_head.link.hex()


async def test_a_command_that_led_to_nothing_moves_the_hash_and_not_the_position(world: SqliteWorld) -> None:
    kept = await grown(world, 1)
    shutil.copytree(world.path.parent, world.path.parent.with_name("older"))
    store = await world.open()
    await store.append(append_of(command_id="nothing", body="nothing"))
    await store.close()
    kept.append(witness(world.path, TIMES[5]))
    assert (kept[-1].head_seq, kept[-1].head_hash != kept[-2].head_hash) == (4, True)
    assert found(world.path, kept) == (3, [])
    older = world.path.parent.with_name("older") / "events.db"
    count, problems = found(older, kept)
    assert (count, len(problems)) == (2, 1)
    assert "up to event 4 it is not the one that was witnessed at 2026-01-01T00:05" in problems[0]


def nothing_sealed(path: Path) -> None:
    """The log stays as it is."""


def all_sealed(path: Path) -> None:
    assert archive(path, lambda reading: reading.head(), segment_events=1).events > 0


@pytest.mark.parametrize("sealed", [nothing_sealed, all_sealed])
async def test_an_older_copy_of_the_whole_directory_is_seen(world: SqliteWorld, sealed: Callable[[Path], None]) -> None:
    kept = await grown(world, 2)
    shutil.copytree(world.path.parent, world.path.parent.with_name("older"))
    older = world.path.parent.with_name("older") / "events.db"
    await (await filled(world, 2)).close()
    kept.append(witness(world.path, TIMES[5]))
    for path in (world.path, older):
        sealed(path)
    assert found(world.path, kept) == (4, [])

    assert verify(older).problems == ()  # in itself it is whole
    last = f"the last head that fits: event 8, witnessed at {TIMES[2]}"
    assert found(older, kept) == (
        3,
        [f"{older}: log rolled back: event 12 was witnessed at {TIMES[5]}, and the log ends at 8; {last}"],
    )
    # It goes on, and gets beyond what was witnessed: it is another log now.
    store = await open_store(older, node=NODE, epoch=EPOCH, now_us=NOW_US)
    await store.append(append_of(write("vm-other", 0, *[new("Other")] * 10), command_id="other"))
    await store.close()
    count, problems = found(older, kept)
    assert (count, len(problems)) == (3, 1)
    assert "log rewritten: up to event 12" in problems[0]


@pytest.mark.parametrize("sealed", [nothing_sealed, all_sealed])
async def test_a_log_that_was_rewritten_with_its_head_is_seen(
    world: SqliteWorld, tmp_path: Path, sealed: Callable[[Path], None]
) -> None:
    kept = await grown(world)
    lines: list[bytes] = []
    export(world.path, lines.append)
    (tmp_path / "forged").mkdir()
    forger = SqliteWorld(tmp_path / "forged")
    store = await forger.open()  # the same node and epoch, another third event
    for number in range(6):
        what = "Forged" if number == 1 else "Made"
        await store.append(
            append_of(
                write(f"vm-{number}", 0, new(what, bytes(range(200)))),
                write("vm-common", number, new("Grown")),
                command_id=f"command-{number}",
                body=f"body-{number}",
            )
        )
    await store.close()
    sealed(forger.path)
    assert verify(forger.path).problems == ()
    count, problems = found(forger.path, kept)
    assert (count, len(problems)) == (1, 1)
    assert "log rewritten: up to event 4 it is not the one that was witnessed at 2026-01-01T00:01" in problems[0]
    assert problems[0].endswith("; 2 more do not fit")


async def test_what_was_witnessed_after_damage_cannot_be_told_and_before_it_can(world: SqliteWorld) -> None:
    kept = await grown(world)
    raw = world.path.read_bytes()
    at = raw.rindex(bytes(range(200)))  # of one event that is not the first
    world.path.write_bytes(raw[:at] + b"\xff" + raw[at + 1 :])
    count, problems = found(world.path, kept)
    assert count is not None
    assert 1 <= count < 4
    assert problems
    assert not any("rolled back" in problem for problem in problems)


async def test_an_import_has_the_heads_that_were_witnessed_of_the_log_and_goes_on_in_a_new_epoch(
    world: SqliteWorld, tmp_path: Path
) -> None:
    kept = await grown(world)
    lines: list[bytes] = []
    export(world.path, lines.append)
    (tmp_path / "there").mkdir()
    there = SqliteWorld(tmp_path / "there")
    import_(lines, there.path, epoch="1111111111111111", now_us=NOW_US)
    assert found(there.path, kept) == (4, [])

    await (await filled(there, 2)).close()
    all_sealed(there.path)
    kept.append(witness(there.path, TIMES[6]))
    assert (kept[-1].epoch, kept[-1].head_seq) == ("1111111111111111", 16)
    assert found(there.path, kept) == (5, [])
    # The log that was exported has none of it.
    count, problems = found(world.path, kept)
    assert (count, len(problems)) == (4, 1)


async def test_an_import_of_an_older_export_is_seen(world: SqliteWorld, tmp_path: Path) -> None:
    kept = await grown(world, 2)
    lines: list[bytes] = []
    export(world.path, lines.append)
    await (await filled(world, 2)).close()
    kept.append(witness(world.path, TIMES[5]))
    import_(lines, tmp_path / "events.db", epoch="1111111111111111", now_us=NOW_US)
    count, problems = found(tmp_path / "events.db", kept)
    assert (count, len(problems)) == (3, 1)
    assert "rolled back: event 12 was witnessed" in problems[0]


async def test_an_export_of_the_first_format_is_taken_and_its_hashes_are_new(
    world: SqliteWorld, tmp_path: Path
) -> None:
    kept = await grown(world)
    lines: list[bytes] = []
    export(world.path, lines.append)
    old = [line for line in lines[:-1] if json.loads(line)["line"] != "commit"]
    old[0] = old[0].replace(b'"format":2', b'"format":1')
    end = json.loads(lines[-1]) | {"sha256": hashlib.sha256(b"".join(old)).hexdigest()}
    import_([*old, json.dumps(end).encode()], tmp_path / "events.db", epoch="1111111111111111", now_us=NOW_US)
    assert verify(tmp_path / "events.db").problems == ()
    assert found(tmp_path / "events.db", kept)[0] == 1  # that of the empty log


async def test_an_export_whose_commits_do_not_lead_to_their_hashes_is_refused(
    world: SqliteWorld, tmp_path: Path
) -> None:
    await grown(world)
    lines: list[bytes] = []
    export(world.path, lines.append)
    forged = [line.replace(b'"Made"', b'"Mode"') for line in lines]
    with pytest.raises(BadImport):
        import_(forged, tmp_path / "events.db", epoch="1111111111111111", now_us=NOW_US)
    assert not (tmp_path / "events.db").exists()


async def test_only_heads_of_this_node_count_and_there_has_to_be_one(world: SqliteWorld) -> None:
    kept = await grown(world, 1)
    other = Witnessed("host2", EPOCH, 1000, "0" * 64, TIMES[0])
    assert found(world.path, [*kept, other]) == (2, [])
    count, problems = found(world.path, [other])
    assert (count, len(problems)) == (0, 1)
    assert "no head of node host1 was witnessed: they are of host2" in problems[0]
    assert found(world.path, [])[1] == [f"{world.path}: no head of node host1 was witnessed: there are none"]


async def test_a_file_of_heads_is_kept_and_read_strictly(world: SqliteWorld, tmp_path: Path) -> None:
    kept = await grown(world, 2)
    file = tmp_path / "heads.jsonl"
    assert [maintenance.keep(file, each) for each in (kept[0], kept[1], kept[1], kept[2])] == [True, True, False, True]
    assert maintenance.read_witnessed(file) == kept
    with pytest.raises(Refused, match="ends at event 4, and event 8 was witnessed"):
        maintenance.keep(file, kept[1])
    assert maintenance.keep(file, Witnessed("host2", EPOCH, 0, "0" * 64, TIMES[0]))
    assert maintenance.read_witnessed(file)[:-1] == kept

    good_line = encode(kept[1])
    for broken in (b"\n", b"{}", b"[]", good_line[:-3], good_line.replace(b'"head-seq":4', b'"head-seq":"4"'),
                   good_line.replace(kept[1].head_hash.encode(), b"00"), b"\xff"):  # fmt: skip
        with pytest.raises(ValueError, match="line 2 is not a witnessed head"):
            decode_lines([good_line, broken])


def test_a_heartbeat_is_a_line(tmp_path: Path) -> None:
    beat = {"node": "host1", "epoch": EPOCH, "seq": 4, "version": "0.2", "head-seq": 4, "head-hash": "a" * 64}
    line = json.dumps({**beat, "time": TIMES[0]}).encode()
    assert decode(line) == Witnessed("host1", EPOCH, 4, "a" * 64, TIMES[0])


async def test_the_command_line_keeps_heads_and_compares(make_node: MakeNode, tmp_path: Path) -> None:
    node = await simulated_node(make_node, tmp_path)
    heads = str(tmp_path / "heads.jsonl")
    status, _, err = await node.cli("log", "verify", "--witness", heads)
    assert (status, "there is no" in err) == (2, True)
    await good(node, "log", "witness", heads)
    older = tmp_path / "older"
    await node.stop()
    shutil.copytree(node.state_dir, older)
    await node.start()
    await good(node, "vm", "create", "web", "--image", "blank")
    kept = await told(node, "log", "witness", heads)
    assert kept["node"] == "host1"
    verified = await told(node, "log", "verify", "--witness", heads)
    assert (verified["witnessed"], verified["problems"]) == (2, [])
    assert "2 of 2 witnessed heads match" in await good(node, "log", "verify", "--witness", heads)

    status, out, err = await node.cli("log", "verify", "--witness", heads, "--state-dir", str(older))
    assert (status, "log rolled back" in out) == (1, True), (out, err)
    assert "hint: if you restored a backup yourself, start a new file of heads" in err
    assert "log export" not in err, "what is whole need not be saved"
    status, _, err = await node.cli("log", "witness", heads, "--state-dir", str(older))
    assert (status, "it was rolled back, or is another one" in err) == (1, True)
