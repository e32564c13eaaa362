"""The serial log as text and as bytes, by bytes and by lines."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import AsyncIterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.compute.driver import LogRange
from aetherscale.actors.compute.model.commands import LogsOptions
from aetherscale.actors.compute.model.sessioncommands import EXEC_INPUT_BYTES, ExecOptions
from aetherscale.actors.compute.readers import last_lines
from aetherscale.actors.compute.service import ComputeService
from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.compute.simulated.host import SimulatedHost
from aetherscale.gateways.cli.output import Bytes, harmless


class Pieces(SimulatedDriver):
    """Its log comes in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__(SimulatedHost())
        self.pieces = pieces

    async def logs(self, vm_id: str, wanted: LogRange, *, follow: bool) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


async def told(options: LogsOptions, *pieces: bytes) -> list[Any]:
    service = ComputeService(None, Pieces(*pieces))  # type: ignore[arg-type]
    service._alive = lambda options, call: SimpleNamespace(id="vm")  # type: ignore[assignment, return-value]
    return [chunk async for chunk in service.logs(options, None)]  # type: ignore[arg-type]


async def test_a_character_that_is_cut_by_a_piece_is_whole() -> None:
    word = "gr\u00fc\u00df \u2603 \U0001f600".encode()
    chunks = await told(LogsOptions(), *[word[at : at + 1] for at in range(len(word))])
    assert "".join(chunk["text"] for chunk in chunks[:-1]) == word.decode()


@pytest.mark.parametrize(
    ("data", "text"), [(b"a\xffb", "a\ufffdb"), (b"end\xe2\x98", "end\ufffd"), (b"\xc3(", "\ufffd(")]
)
async def test_what_is_no_character_is_shown_as_such_and_costs_nothing_else(data: bytes, text: str) -> None:
    chunks = await told(LogsOptions(), *[data[at : at + 1] for at in range(len(data))])
    assert "".join(chunk["text"] for chunk in chunks[:-1]) == text


async def test_bytes_come_as_they_are_where_they_are_asked_for() -> None:
    chunks = await told(LogsOptions(raw=True), b"a\xff", b"\xe2\x98", b"\x83")
    assert [base64.b64decode(chunk["data"]) for chunk in chunks[:-1]] == [b"a\xff", b"\xe2\x98", b"\x83"]
    assert all("text" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("data", "count", "last"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 0, b""),
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"a\nb\nc", 1, b"c"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\n\n\n", 2, b"\n\n"),
        (b"abc", 1, b"abc"),
        (b"\n", 1, b"\n"),
    ],
)
def test_the_last_lines_are_those_of_tail(data: bytes, count: int, last: bytes) -> None:
    assert last_lines(data, count) == last


def test_more_input_than_fits_is_refused_by_a_node() -> None:
    fits = {"vm-id": "web", "command": ["cat"], "stdin": base64.b64encode(b"x" * EXEC_INPUT_BYTES).decode()}
    assert len(msgspec.convert(fits, ExecOptions).stdin) == EXEC_INPUT_BYTES
    fits["stdin"] = base64.b64encode(b"x" * (EXEC_INPUT_BYTES + 1)).decode()
    with pytest.raises(msgspec.ValidationError, match="stdin"):
        msgspec.convert(fits, ExecOptions)


@given(data=st.binary(max_size=40).map(lambda data: data.replace(b"\r", b"\n")), count=st.integers(0, 10))
def test_the_last_lines_are_so_many(data: bytes, count: int) -> None:
    lines = data.split(b"\n")
    lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    assert last_lines(data, count) == b"".join(lines[len(lines) - min(count, len(lines)) :])


@given(
    text=st.lists(st.sampled_from(["\x1b[1;31m", "\x1b]0;a title\x07", "\x1bc", "red", "\u00fc", "\n", "["])),
    cuts=st.lists(st.integers(0, 80)),
)
def test_no_piece_of_an_escape_sequence_reaches_a_terminal(text: list[str], cuts: list[int]) -> None:
    data = "".join(text).encode()
    at = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        shown = Bytes(terminal=True)
        for start, end in pairwise(at):
            shown.write(data[start:end])
        shown.write(b".")
    assert out.getvalue() == harmless("".join(text) + ".")
