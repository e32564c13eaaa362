"""How much is told of one thing that another program changes again and again."""

from __future__ import annotations

from aetherscale.actors.network.fights import TOLD_AT_ONCE, WITHIN_S, Fights


def test_as_many_as_the_bound_are_told_in_the_time_and_then_one_for_each_that_is_over() -> None:
    now_s = 100.0
    fights = Fights(lambda: now_s)
    for _ in range(TOLD_AT_ONCE):
        assert not fights.is_one("tap")
        now_s += 1
    assert fights.is_one("tap")
    assert not fights.is_one("bridge"), "each thing for itself"
    now_s = 100.0 + WITHIN_S - 0.001
    assert fights.is_one("tap")
    now_s = 100.0 + WITHIN_S
    assert not fights.is_one("tap")
    assert fights.is_one("tap"), "the second was told a second later"
    now_s += 2 * WITHIN_S
    assert [fights.is_one("tap") for _ in range(TOLD_AT_ONCE + 1)] == [False] * TOLD_AT_ONCE + [True]
