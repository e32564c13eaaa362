"""No terminal answers a console's history, and everything else in it is as it was."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.gateways.cli.terminalqueries import History

QUERIES = [
    b"\x1b[6n", b"\x1b[5n", b"\x1b[?6n", b"\x1b[c", b"\x1b[0c", b"\x1b[>c", b"\x1b[=c", b"\x1b[x", b"\x1b[>q",
    b"\x1b[?u", b"\x1b[?2026$p", b"\x1b[4$p", b"\x1b[14t", b"\x1b[18t", b"\x1b[21t", b"\x1b[1;1;1;1;1;1*y", b"\x1bZ",
    b"\x1b]11;?\x07", b"\x1b]10;?\x1b\\", b"\x1b]52;c;?\x07", b"\x1b]4;1;?\x1b\\", b"\x1bP$qm\x1b\\",
    b"\x1bP+q544e\x1b\\", b"\x1b_Gi=1,a=q;AAAA\x1b\\", b"\x05", b"\xc2\x9b6n", b"\xc2\x9d11;?\xc2\x9c",
    b"\x1b[\n6n", b"\x1b[6\x1b[6n",
]  # fmt: skip
HARMLESS = [
    b"plain\r\n", b"\x1b[1;31mred\x1b[0m", b"\x1b[2J\x1b[H", b"\x1b[?25l", b"\x1b[>4;2m", b"\x1b]0;what? a title\x07",
    b"\x1b]8;;https://x/?q\x1b\\link", b"\x1b7\x1b8\x1b(B\x1b=", b"\x1b[22;0;0t", b"\x1b[8;24;80t", b"\x1b[2 q",
    "gr\xfc\xdfe ś ☃".encode(), b"\xc2\xa9", b"\xff\xfe", b"\x1b[!p",
]  # fmt: skip

pieces = st.lists(st.one_of(st.sampled_from([*QUERIES, *HARMLESS]), st.binary(max_size=6)), max_size=12).map(b"".join)
control = st.lists(st.sampled_from([bytes([b]) for b in b"\x1b[]P\\_?;>6nct$pZ\x05\x07\x18\xc2\x9b\x9c\x9da"])).map(
    b"".join
)


def shown(data: bytes) -> bytes:
    return History(len(data)).feed(data)


@pytest.mark.parametrize("query", QUERIES)
def test_a_question_in_the_history_is_taken_out(query: bytes) -> None:
    assert shown(b"before" + query + b"after").replace(b"\n", b"") == b"beforeafter"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_asks_nothing_is_shown_as_it_was_written(text: bytes) -> None:
    assert shown(b"before" + text + b"after") == b"before" + text + b"after"


@pytest.mark.parametrize("query", QUERIES)
def test_what_the_guest_asks_now_is_left_to_the_terminal(query: bytes) -> None:
    assert History(0).feed(query) == query
    assert History(6).feed(b"before" + query) == b"before" + query


def test_a_question_that_was_half_asked_is_asked_to_its_end() -> None:
    history = History(3)
    assert history.feed(b"\x1b[") + history.feed(b"6") + history.feed(b"n\x1b[6n") == b"\x1b[6n\x1b[6n"


@given(data=st.one_of(pieces, control), cuts=st.lists(st.integers(0, 60)), length=st.integers(0, 60))
def test_it_does_not_matter_in_which_pieces_it_comes(data: bytes, cuts: list[int], length: int) -> None:
    at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    history = History(length)
    assert b"".join(history.feed(data[a:b]) for a, b in pairwise(at)) == History(length).feed(data)


@given(data=st.one_of(pieces, control))
def test_no_question_comes_of_what_is_left(data: bytes) -> None:
    found = shown(data + b"\x18")  # what is not ended is ended
    assert shown(found) == found
    assert re.search(rb"\x05|(?:\x1b\[|\xc2\x9b)[0-?]*c|(?:\x1b\[|\xc2\x9b)[0-=?]*n|\x1bZ", found) is None
