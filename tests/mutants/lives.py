"""Simulated lives of a node, for mutants alone: in the process itself, so that they run the mutated code.

The ordinary tests play more of them, in processes of their own.
"""

from __future__ import annotations

import pytest

from tests.simulation.simulation import simulate


@pytest.mark.parametrize("seed", range(1, 13))
def test_a_life_ends_well(seed: int) -> None:
    simulate(seed, deaths=8)
