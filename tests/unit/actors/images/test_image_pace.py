"""How far a piece of work is: the rate of the last seconds, and the time that is left at it."""

from __future__ import annotations

from typing import Any

import pytest

from aetherscale.actors.images.pace import WINDOW_S, Pace
from aetherscale.gateways.cli.work import measured

MIB = 1 << 20


class Told:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.last: dict[str, Any] = {}
        self.pace = Pace(self.progress, "fetching", lambda: self.now_s)

    def progress(self, step: str, /, **fields: Any) -> None:
        assert step == "fetching"
        self.last = fields

    def at(self, second: float, done: int, total: int | None) -> tuple[int | None, int | None]:
        self.now_s = 100.0 + second
        self.pace.tell(done, total)
        assert (self.last["done_bytes"], self.last["total_bytes"]) == (done, total)
        return self.last["rate_bytes_s"], self.last["left_s"]


def test_there_is_no_rate_before_it_can_be_told() -> None:
    told = Told()
    assert told.at(0, 0, 100 * MIB) == (None, None)
    assert told.at(0.5, MIB, 100 * MIB) == (None, None)


def test_the_rate_and_what_is_left_follow_from_the_last_seconds() -> None:
    told = Told()
    told.at(0, 0, 100 * MIB)
    assert told.at(2, 20 * MIB, 100 * MIB) == (10 * MIB, 8)
    last = 3 + int(WINDOW_S) + 1
    for second in range(3, last):
        told.at(second, (20 + second) * MIB, 100 * MIB)
    assert told.at(last, (20 + last) * MIB, 100 * MIB)[0] == MIB, "what was long ago does not count"


def test_without_a_total_there_is_no_end() -> None:
    told = Told()
    told.at(0, 0, None)
    assert told.at(1, MIB, None) == (MIB, None)


def test_one_that_stands_still_has_no_end_and_one_that_begins_anew_no_rate() -> None:
    told = Told()
    told.at(0, MIB, 2 * MIB)
    assert told.at(5, MIB, 2 * MIB) == (0, None)
    assert told.at(6, 0, 2 * MIB) == (None, None)


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ({}, ""),
        ({"done-bytes": "x"}, ""),
        ({"done-bytes": 5 * MIB}, "5 MiB"),
        ({"done-bytes": 5 * MIB, "total-bytes": 10 * MIB}, "5 of 10 MiB"),
        (
            {"done-bytes": 0, "total-bytes": 330 * MIB, "rate-bytes-s": 3 * MIB // 2, "left-s": 119},
            "0 of 330 MiB, 1.5 MiB/s, 119 s left",
        ),
        ({"done-bytes": 0, "total-bytes": 0, "rate-bytes-s": 0, "left-s": 120}, "0 of 0 MiB, 0.0 MiB/s, 2 min left"),
        ({"done-bytes": MIB, "total-bytes": None, "rate-bytes-s": None, "left-s": None}, "1 MiB"),
    ],
)
def test_it_is_told_in_words(chunk: dict[str, Any], text: str) -> None:
    assert measured(chunk) == text
