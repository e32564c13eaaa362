"""The disk that the power cuts are tried on: what is synced stays, and everything else may go, in every way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.powercuts.disk import SECTOR_BYTES, Disk, Names, Resize, Step, Sync, SyncDirectory, Write, seeded

OLD, NEW = b"o" * 2000, b"n" * 2000


def after(steps: list[Step], seed: int) -> dict[str, bytes]:
    disk = Disk({"a": OLD})
    for step in steps:
        disk.do(step)
    return disk.after_power_cut(seeded(seed))


def outcomes(*steps: Step) -> set[tuple[tuple[str, bytes], ...]]:
    return {tuple(sorted(after(list(steps), seed).items())) for seed in range(400)}


@given(st.integers())
def test_what_is_synced_stays(seed: int) -> None:
    written: list[Step] = [Write(0, 0, NEW), Resize(0, 1500), Sync(0)]
    assert after(written, seed) == {"a": NEW[:1500]}
    renamed: list[Step] = [Names((("a", None), ("b", 0))), SyncDirectory()]
    assert after([*written, *renamed], seed) == {"b": NEW[:1500]}


@given(st.integers())
def test_a_sector_is_old_or_new(seed: int) -> None:
    found = after([Write(0, 0, NEW)], seed)["a"]
    assert len(found) == len(OLD)
    for first in range(0, len(found), SECTOR_BYTES):
        assert len(set(found[first : first + SECTOR_BYTES])) == 1


def test_what_is_not_synced_may_be_there_be_gone_or_be_torn() -> None:
    found = {content for ((_, content),) in outcomes(Write(0, 0, NEW))}
    assert OLD in found
    assert NEW in found
    assert any(OLD[:1] in content and NEW[:1] in content for content in found)


def test_a_later_write_may_be_there_without_the_one_before() -> None:
    first, second = Write(0, 0, b"1" * SECTOR_BYTES), Write(0, SECTOR_BYTES, b"2" * SECTOR_BYTES)
    found = {(content[0], content[SECTOR_BYTES]) for ((_, content),) in outcomes(first, second)}
    assert found == {(x, y) for x in b"o1" for y in b"o2"}


def test_a_file_that_grew_may_have_rubbish_in_it_or_its_old_size() -> None:
    found = {content for ((_, content),) in outcomes(Write(0, len(OLD), NEW))}
    assert OLD in found
    assert OLD + bytes(len(NEW)) in found
    assert any(set(content[len(OLD) :]) - set(NEW) - {0} for content in found)


def test_names_may_lag_behind_whatever_the_files_hold() -> None:
    steps: list[Step] = [
        Names((("b", 1),)),
        Write(1, 0, NEW),
        Sync(1),
        Names((("b", None), ("c", 1))),
        Names((("a", None),)),
    ]
    found = {tuple(name for name, _ in files) for files in outcomes(*steps)}
    assert found == {("a",), ("a", "b"), ("a", "c"), ("b",), ("c",), ()}
