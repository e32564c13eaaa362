"""Some hundred damages to logs small and large, at rest and killed, each told or without effect.

`just flips` tries ten thousand.
"""

from __future__ import annotations

from pathlib import Path

from tests.damage.flips import PARTS, try_damage
from tests.support.in_memory import memory_path

__all__ = ["memory_path"]


async def test_damage_anywhere_is_told_or_everything_reads_back_as_it_was_written(memory_path: Path) -> None:
    tally, faults = await try_damage(0, 400, memory_path)
    assert faults == []
    told = {(part, said) for _, part, _, said in tally if said != "equal"}
    assert {part for part, _ in told} == set(PARTS)
    assert {said for _, said in told} == {"open", "read", "verify"}
