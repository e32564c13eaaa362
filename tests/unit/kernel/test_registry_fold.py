"""Folding many events at once comes to what folding them one by one does."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct

from aetherscale.kernel.messages import Event, Recorded
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.registry import Kind, Registry, apply, fold
from aetherscale.kernel.reservations import NameClaimed, NameReleased, UseBegan, UseEnded, name_stream, use_stream


class Said(Event, frozen=True):
    word: str


class Speech(Struct, frozen=True):
    words: tuple[tuple[str, int], ...]


def evolve(state: Speech | None, event: Said, at_us: int) -> Speech:
    return Speech((*(state.words if state else ()), (event.word, at_us)))


KIND = Kind("speech", Speech, (Said,), evolve, lambda state, *_: state)
IDS = [derive_id("speech", name) for name in "abc"]

said = st.tuples(st.sampled_from([f"speech-{each}" for each in IDS]), st.builds(Said, st.text(max_size=2)))
of_another_kind = st.tuples(st.just(f"song-{IDS[0]}"), st.builds(Said, st.just("la")))
names = st.sampled_from(["x", "y"]).flatmap(
    lambda name: st.tuples(
        st.just(name_stream("speech", "default", name)),
        st.sampled_from([NameClaimed("speech", name, IDS[0]), NameReleased("speech", name, IDS[0])]),
    )
)
uses = st.sampled_from(IDS).flatmap(
    lambda used: st.tuples(
        st.just(use_stream("speech", used)),
        st.sampled_from([UseBegan("speech", used, "vm", "1"), UseEnded("speech", used, "vm", "1")]),
    )
)
logs = st.lists(
    st.tuples(
        st.one_of(said, said, of_another_kind, names, uses), st.sampled_from(["user:a", "user:b", "aether:compute"])
    ),
    max_size=30,
)


def log_of(written: Sequence[tuple[tuple[str, Event], str]]) -> list[Recorded]:
    versions: dict[str, int] = {}
    recorded = []
    for seq, ((stream, event), actor) in enumerate(written, 1):
        versions[stream] = versions.get(stream, 0) + 1
        recorded.append(
            Recorded(seq, stream, versions[stream], seq * 10, "n", "e", "default", actor, "c", f"co-{seq}", None, event)
        )
    return recorded


ASKED_AND_ANSWERED = [((f"speech-{IDS[0]}", Said("x")), "user:a"), ((f"speech-{IDS[0]}", Said("y")), "aether:compute")]


@given(logs, st.integers(1, 9))
@example(ASKED_AND_ANSWERED, 2)
def test_pages_come_to_what_their_events_come_to_one_by_one(
    written: list[tuple[tuple[str, Event], str]], page: int
) -> None:
    recorded = log_of(written)
    one_by_one: Registry[Speech] = Registry()
    for each in recorded:
        apply(KIND, one_by_one, each)
    in_pages: Registry[Speech] = Registry()
    for first in range(0, len(recorded), page):
        fold(KIND, in_pages, recorded[first : first + page])
    assert in_pages == one_by_one
    assert msgspec.msgpack.encode(in_pages) == msgspec.msgpack.encode(one_by_one), "in the same order, too"
