"""What a program in a guest printed fits into one message."""

from __future__ import annotations

import pytest

from aetherscale.actors.compute.component import EXEC_OUTPUT_BYTES, _fitting
from aetherscale.kernel.wire import encode


@pytest.mark.parametrize("output", [b"", b"hello\n", b"\xff\xfe"])
def test_little_is_told_whole(output: bytes) -> None:
    assert _fitting(output) == (output.decode("utf-8", "replace"), False)


@pytest.mark.parametrize("unit", [b"y\n", b"\x00", b"\xff", "\u00e4".encode(), b'"'])
def test_much_is_cut_by_the_size_that_it_has_on_the_wire(unit: bytes) -> None:
    text, cut = _fitting(unit * 1_500_000)
    assert cut
    assert EXEC_OUTPUT_BYTES // 2 < len(encode(text)) <= EXEC_OUTPUT_BYTES
