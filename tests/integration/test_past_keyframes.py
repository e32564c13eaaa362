"""Any moment of the past from keyframes is what the fold from the first event gives, whatever becomes of the log."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model.presentation import VM_KIND
from aetherscale.components import kinds
from aetherscale.debugger.keyframes import Counts
from aetherscale.debugger.past import LOG_NAME
from aetherscale.eventstore.archive import archive
from aetherscale.eventstore.sqlite.past import PAST_NAME
from aetherscale.eventstore.transfer import export, import_
from aetherscale.kernel.registry import OURSELVES
from tests.support.past_fixtures import EVENTS, SEEDS, assert_same, history, kept, made, replace_kind, state_dir, truth
from tests.support.pasts import START_US, STRAY, Truth, chance, written

__all__ = ["made", "state_dir", "truth"]


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_every_moment_is_the_fold_from_the_first_event(
    made: dict[int, tuple[Path, Truth]], tmp_path: Path, seed: int, sealed: bool
) -> None:
    state, truth = shutil.copytree(made[seed][0], tmp_path / "state"), made[seed][1]
    if sealed:
        archive(state / LOG_NAME, lambda reading: reading.head() - 50, segment_events=20)
    positions = list(range(len(truth.events) + 1))
    chance(seed).shuffle(positions)  # so that keyframes are made a few at a time, from others and from none
    with history(state) as opened:
        assert_same(opened, truth, positions)
    with history(state) as opened:
        assert_same(opened, truth, positions[::3])
    assert kept(state) == list(range(32, len(truth.events) + 1, 32))


def test_the_story_has_what_is_hard_to_tell(truth: Truth) -> None:
    """The logs of these tests have late events of deleted VMs, names that came back, and times that step back."""
    recalled = [
        one
        for one in truth.events
        if type(one.event).__name__ == STRAY and _phase(truth, one.seq // 32 * 32, one.stream) == "deleted"
    ]
    assert len(recalled) > 3
    assert any(_phase(truth, one.seq, one.stream) != "deleted" for one in recalled)
    [(_, vms, _, _)] = [truth.at(len(truth.events))["vm"]]
    names = [one.state.name for one in vms.values()]
    assert len(set(names)) < len(names)
    assert any(after.time_us < before.time_us for before, after in zip(truth.events, truth.events[1:], strict=False))


def _phase(truth: Truth, position: int, stream: str) -> str:
    kind, _, identifier = stream.partition("-")
    found = truth.at(position)[kind][1].get(identifier)
    return found.state.phase if found is not None else ""


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("filled_to", [0, 64, 200, EVENTS])
def test_every_time_means_the_position_that_the_log_says(
    made: dict[int, tuple[Path, Truth]], tmp_path: Path, seed: int, filled_to: int
) -> None:
    state, truth = shutil.copytree(made[seed][0], tmp_path / "state"), made[seed][1]
    times = sorted({event.time_us for event in truth.events})
    moments = {time_us + more for time_us in times for more in (-1, 0, 1)} | {0, START_US - 10**9, times[-1] + 10**9}
    with history(state) as opened:
        opened.state_at(filled_to)
        for moment in moments:
            assert opened.position_at(moment) == opened._reading.position_at(moment), moment
        together = sorted(moments)
        assert opened.positions_at(together) == [opened._reading.position_at(moment) for moment in together]


def test_counts_are_those_of_all_events_before(state_dir: Path, truth: Truth) -> None:
    counts = [Counts()]
    for event in truth.events:
        before, after = ({one.id: one for one in _all(truth, at)} for at in (event.seq - 1, event.seq))
        counts.append(_counted(counts[-1], event, before, after))
    assert counts[-1].failed > 0
    assert counts[-1].asked > 0
    assert counts[-1].happened > 0
    positions = list(range(len(counts)))
    chance(1).shuffle(positions)
    with history(state_dir) as opened:
        for position in positions:
            assert opened.counts_of([position]) == [counts[position]], position


def test_counts_of_many_positions_are_those_of_each(state_dir: Path) -> None:
    every = list(range(EVENTS + 1))
    with history(state_dir) as opened:
        found = opened.counts_of(every)
        assert found == [opened.counts_of([position])[0] for position in every]
        assert opened.counts_of(every[::7]) == found[::7]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_event_passes_with_what_was_before_it_and_after(
    made: dict[int, tuple[Path, Truth]], tmp_path: Path, seed: int
) -> None:
    """Whatever the span begins at: also where an object that is deleted by then gets an event."""
    state, truth = shutil.copytree(made[seed][0], tmp_path / "state"), made[seed][1]
    expected = []
    for event in truth.events:
        kind, _, identifier = event.stream.partition("-")
        known = [
            truth.at(at)[kind][1].get(identifier) if kind != "claim" else None for at in (event.seq - 1, event.seq)
        ]
        expected.append((event.seq, *known))
    with history(state) as opened:
        for after in range(0, EVENTS, 13):
            until = min(after + 50, EVENTS)
            told = opened.passing(after, until, lambda passing: (passing[0].seq, *passing[1:]))
            assert told == expected[after:until], after


def _all(truth: Truth, position: int) -> Iterator[Any]:
    for _, aggregates, *_ in truth.at(position).values():
        yield from aggregates.values()


def _counted(counts: Counts, event: Any, before: dict[str, Any], after: dict[str, Any]) -> Counts:
    kind, _, identifier = event.stream.partition("-")
    if kind == "claim":
        return counts
    old = before[identifier].state.failure if identifier in before else None
    new = after[identifier].state.failure
    if new is not None and new is not old:
        return replace(counts, failed=counts.failed + 1)
    if event.actor.startswith(OURSELVES):
        return replace(counts, happened=counts.happened + 1)
    return replace(counts, asked=counts.asked + 1)


def test_a_moment_beyond_the_end_is_the_end(state_dir: Path, truth: Truth) -> None:
    head = len(truth.events)
    with history(state_dir) as opened:
        assert {name: one.aggregates for name, one in opened.state_at(head + 1000).items()} == {
            name: one.aggregates for name, one in opened.state_at(head).items()
        }


def test_only_what_is_missing_up_to_the_moment_is_made(state_dir: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(31)
        assert kept(state_dir) == []
        opened.state_at(32)
        assert kept(state_dir) == [32]
        opened.state_at(100)
        opened.state_at(40)
    assert kept(state_dir) == [32, 64, 96]


async def test_a_log_that_grows_is_followed(state_dir: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(len(Truth(state_dir).events))
        await written(state_dir, 100, seed=5)
        truth = Truth(state_dir)
        assert_same(opened, truth, list(range(380, len(truth.events) + 1)))


def test_another_shape_of_the_state_has_keyframes_of_its_own(state_dir: Path, truth: Truth) -> None:
    newer = tuple(replace_kind(kind) if kind is VM_KIND else kind for kind in kinds())
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    with history(state_dir, newer) as opened:
        opened.state_at(10)
        assert len(kept(state_dir)) == EVENTS // 32, "the older one's stay until there is something newer"
        opened.state_at(70)
        assert kept(state_dir) == [32, 64]
    with history(state_dir) as opened:
        assert_same(opened, truth, [EVENTS, 65, 31])


# --- what becomes of the log ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back_to", [10, 150])
@pytest.mark.parametrize("more", [20, 100, 500])
async def test_a_log_that_was_rolled_back_and_went_on_is_believed(tmp_path: Path, back_to: int, more: int) -> None:
    state = tmp_path / "state"
    await written(state, back_to, seed=1)
    backup = shutil.copytree(state, tmp_path / "backup")
    await written(state, EVENTS, seed=2)
    with history(state) as opened:
        opened.state_at(EVENTS)
    shutil.copy(state / PAST_NAME, backup / PAST_NAME)
    await written(backup, more, seed=3)
    truth = Truth(backup)
    with history(backup) as opened:
        assert_same(opened, truth, list(range(0, len(truth.events) + 1, 9)))
        for event in truth.events[::9]:
            assert opened.position_at(event.time_us) == opened._reading.position_at(event.time_us)


async def test_a_log_that_was_rewritten_under_its_epoch_is_believed(tmp_path: Path) -> None:
    await written(tmp_path / "state", EVENTS, seed=1)
    await written(tmp_path / "other", EVENTS, seed=2)
    with history(tmp_path / "state") as opened:
        opened.state_at(EVENTS)
    shutil.copy(tmp_path / "state" / PAST_NAME, tmp_path / "other" / PAST_NAME)
    with history(tmp_path / "other") as opened:
        assert_same(opened, Truth(tmp_path / "other"), list(range(0, EVENTS, 9)))


async def test_an_import_has_keyframes_of_its_own_epoch(state_dir: Path, tmp_path: Path) -> None:
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    lines: list[bytes] = []
    export(state_dir / LOG_NAME, lines.append)
    (tmp_path / "new").mkdir(mode=0o700)
    import_(lines, tmp_path / "new" / LOG_NAME, epoch="1" * 32, now_us=START_US)
    shutil.copy(state_dir / PAST_NAME, tmp_path / "new" / PAST_NAME)
    await written(tmp_path / "new", 100, seed=7, epoch="1" * 32)
    truth = Truth(tmp_path / "new")
    with history(tmp_path / "new") as opened:
        assert_same(opened, truth, list(range(0, len(truth.events) + 1, 9)))
    with closing(sqlite3.connect(tmp_path / "new" / PAST_NAME)) as connection:
        assert connection.execute("SELECT DISTINCT epoch FROM parts").fetchall() == [("1" * 32,)]


def test_sealing_the_log_leaves_keyframes_as_they_are(state_dir: Path, truth: Truth) -> None:
    with history(state_dir) as opened:
        opened.state_at(EVENTS)
    before = (state_dir / PAST_NAME).read_bytes()
    archive(state_dir / LOG_NAME, lambda reading: reading.head() - 50, segment_events=20)
    with history(state_dir) as opened:
        assert_same(opened, truth, list(range(0, EVENTS, 5)))
    assert (state_dir / PAST_NAME).read_bytes() == before


# --- two at a time ----------------------------------------------------------------------------------------------------


def test_two_that_fill_at_the_same_time_keep_the_same(state_dir: Path, truth: Truth) -> None:
    with history(state_dir) as one, history(state_dir) as other:
        for position in range(0, EVENTS, 17):
            assert_same(one, truth, [position])
            assert_same(other, truth, [min(position + 40, EVENTS)])
    assert kept(state_dir) == list(range(32, EVENTS + 1, 32))


def test_two_versions_of_the_program_that_fill_at_the_same_time_are_both_right(state_dir: Path, truth: Truth) -> None:
    newer = tuple(replace_kind(kind) if kind is VM_KIND else kind for kind in kinds())
    with history(state_dir) as one, history(state_dir, newer) as other:
        for position in range(0, EVENTS, 17):
            assert_same(one, truth, [position])
            assert_same(other, truth, [min(position + 40, EVENTS)])


async def test_many_threads_fill_one_file(state_dir: Path, truth: Truth) -> None:

    def ask(seed: int) -> None:
        positions = list(range(0, EVENTS + 1, 7))
        chance(seed).shuffle(positions)
        with history(state_dir) as opened:
            assert_same(opened, truth, positions)

    await asyncio.gather(*(asyncio.to_thread(ask, seed) for seed in range(6)))
    assert kept(state_dir) == list(range(32, EVENTS + 1, 32))
