"""The hash chain and its head, and the end of the log in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
import pytest
from msgspec import Struct

from aetherscale.eventstore.chain import (
    EMPTY,
    HEAD_BYTES,
    Head,
    StoredCommand,
    head_from_bytes,
    head_to_bytes,
    next_head,
)
from aetherscale.eventstore.store import Accepted, Damaged, NewEvent, StoredEvent
from aetherscale.eventstore.tail import MOST_BYTES, MOST_EVENTS, Tail

S = TypeVar("S", bound=Struct)


def event(seq: int, data: bytes = b"\x80") -> StoredEvent:
    new = NewEvent("A", 1, data)
    return StoredEvent(seq, "vm-1", seq, 0, "host1", "epoch1", "default", "user:test", "c", "c", None, new)


COMMAND = StoredCommand("default", "c", Accepted(b"d", 1, 1))
OTHER = StoredCommand("default", "b", Accepted(b"d", 1, 1))


def changes(whole: S) -> Iterator[S]:
    """The same with another value in one field, for each of them."""
    for name, value in msgspec.structs.asdict(whole).items():
        others: list[Any] = ["x"]
        if isinstance(value, Struct):
            others = list(changes(value))
        elif value is not None:
            others = [value + {int: 1, str: "x", bytes: b"x"}[type(value)]]
        for other in others:
            yield msgspec.structs.replace(whole, **{name: other})


def test_a_link_depends_on_everything_before_it() -> None:
    base = next_head(EMPTY, [event(1)], [COMMAND])
    others = [
        next_head(Head(0, 0, b"\x01" * 32), [event(1)], [COMMAND]),
        next_head(Head(1, 0, EMPTY.link), [event(1)], [COMMAND]),
        next_head(EMPTY, [event(1)], []),
        next_head(EMPTY, [event(1), event(2)], [COMMAND]),
        next_head(EMPTY, [event(1)], [OTHER]),
    ]
    others += [next_head(EMPTY, [changed], [COMMAND]) for changed in changes(event(1))]
    assert len(others) == 5 + 14
    assert len({base.link, *(head.link for head in others)}) == 1 + len(others)


def test_the_order_of_commands_in_a_commit_is_theirs() -> None:
    assert next_head(EMPTY, [event(1)], [COMMAND, OTHER]) == next_head(EMPTY, [event(1)], [OTHER, COMMAND])


def test_a_commit_without_events_has_a_link_too() -> None:
    head = next_head(next_head(EMPTY, [event(1)], []), [], [COMMAND])
    assert (head.batch, head.seq) == (2, 1)


def text(value: str) -> bytes:
    """A short text as MessagePack has it."""
    return bytes([0xA0 + len(value)]) + value.encode()


def test_a_link_is_what_another_program_would_compute() -> None:
    """Written out byte by byte: a log of today has to verify with any later version."""
    told = event(1, b"\x01\x02")
    as_msgpack = (
        *(b"\x9e", b"\x01", text("vm-1"), b"\x01", text("A"), b"\x01", b"\xc4\x02\x01\x02", b"\x00"),
        *(text("host1"), text("epoch1"), text("default"), text("user:test"), text("c"), text("c"), b"\xc0"),
    )
    command = (b"\x93", text("default"), text("c"), b"\x93", b"\xc4\x01d", b"\x01", b"\x01")
    commit = (b"\x94", b"\xc4\x20", bytes(32), b"\x01", b"\x91", *as_msgpack, b"\x91", *command)
    assert next_head(EMPTY, [told], [COMMAND]).link == hashlib.sha256(b"".join(commit)).digest()


def test_a_head_comes_back_as_it_was() -> None:
    for head in (EMPTY, next_head(EMPTY, [event(1)], []), Head(10**18, 10**18, b"\xff" * 32)):
        raw = head_to_bytes(head)
        assert len(raw) == HEAD_BYTES
        assert head_from_bytes(raw, "events.head") == head


def test_a_head_with_a_flipped_bit_is_no_head() -> None:
    raw = head_to_bytes(Head(12, 34, bytes(range(32))))
    for place in range(HEAD_BYTES):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[place] ^= 1 << bit
            with pytest.raises(Damaged, match=r"events\.head: this is not the head"):
                head_from_bytes(bytes(flipped), "events.head")


@pytest.mark.parametrize("head", range(0, MOST_EVENTS * 2, 333))
async def test_a_follower_is_given_all_that_follows_its_position(head: int) -> None:
    log = [event(seq) for seq in range(1, head + 1)]
    tail = Tail(0)
    for start in range(0, head, 500):
        tail.extend(log[start : start + 500])
    pages_read = 0

    async def read_page(after: int) -> list[StoredEvent]:
        nonlocal pages_read
        pages_read += 1
        return log[after : after + 100]

    for position in {*range(0, head, 97), *range(max(0, head - MOST_EVENTS - 2), max(0, head - MOST_EVENTS // 2 + 2))}:
        async with aclosing(tail.follow(position, read_page)) as pages:
            assert (await anext(pages))[0].seq == position + 1
    if head:
        pages_read = 0
        async with aclosing(tail.follow(head - 1, read_page)) as pages:
            await anext(pages)
        assert pages_read == 0, "the end is in memory"


@pytest.mark.parametrize("position", range(14))
async def test_what_was_there_before_the_store_was_opened_is_read_from_the_log(position: int) -> None:
    log = [event(seq) for seq in range(1, 14)]
    tail = Tail(10)
    tail.extend(log[10:])

    async def read_page(after: int) -> list[StoredEvent]:
        return log[after : after + 2]

    given: list[StoredEvent] = []
    async with aclosing(tail.follow(position, read_page)) as pages:
        while len(given) < 13 - position:
            given.extend(await anext(pages))
    assert given == log[position:]


def test_the_tail_is_bounded_in_events_and_in_bytes() -> None:
    tail = Tail(0)
    for start in range(1, 10 * MOST_EVENTS, 100):
        tail.extend([event(seq) for seq in range(start, start + 100)])
        assert len(tail._recent) <= MOST_EVENTS
    tail = Tail(0)
    for seq in range(1, 50):
        tail.extend([event(seq, bytes(MOST_BYTES // 5))])
        assert sum(len(kept.data) for kept in tail._recent) <= MOST_BYTES
        assert tail._recent_bytes == sum(len(kept.data) for kept in tail._recent)
    tail.extend([event(50, bytes(MOST_BYTES * 2))])
    assert tail._recent == []
    assert tail._recent_bytes == 0


async def test_a_log_that_ends_before_what_was_written_is_damaged() -> None:
    tail = Tail(5)

    async def read_page(after: int) -> list[StoredEvent]:
        return []

    async with aclosing(tail.follow(2, read_page)) as pages:
        with pytest.raises(Damaged, match="ends at event 2, but event 5 was written"):
            await anext(pages)
