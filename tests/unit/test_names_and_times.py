"""Names, ids and moments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.kernel.names import derive_id, is_id, is_name
from aetherscale.kernel.times import from_rfc3339, to_rfc3339


@pytest.mark.parametrize("name", ["a", "web", "web-1", "a" * 63])
def test_names(name: str) -> None:
    assert is_name(name)
    assert not is_id(name)


@pytest.mark.parametrize("text", ["", "A", "1a", "-a", "a-", "a\n", "a.b", "a_b", "a" * 64, "ä", "a b"])
def test_what_is_no_name(text: str) -> None:
    assert not is_name(text)


@given(st.lists(st.text()))
def test_an_id_is_a_function_of_its_parts_and_never_a_name(parts: list[str]) -> None:
    made = derive_id(*[part.encode("utf-8", "replace").decode() for part in parts])
    assert is_id(made)
    assert not is_name(made)


def test_the_borders_between_the_parts_of_an_id_count() -> None:
    assert derive_id("ab", "c") != derive_id("a", "bc")


@given(st.integers(0, 4_000_000_000_000_000))
def test_a_moment_is_the_same_after_a_round_trip(moment_us: int) -> None:
    text = to_rfc3339(moment_us)
    assert from_rfc3339(text) == moment_us
    assert len(text) == len("2026-01-31T12:00:00.000000Z")


@given(st.integers(0, 4_000_000_000_000_000), st.integers(0, 4_000_000_000_000_000))
def test_moments_sort_as_text(one: int, other: int) -> None:
    assert (one < other) == (to_rfc3339(one) < to_rfc3339(other))


@pytest.mark.parametrize(
    ("text", "moment_us"),
    [
        ("1970-01-01T00:00:00.000000Z", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T02:00:01+02:00", 1_000_000),
        ("1969-12-31T19:00:00-05:00", 0),
        ("1970-01-01T00:00:01", 1_000_000),
        ("1970-01-02", 86_400_000_000),
    ],
)
def test_a_moment_is_read_with_its_offset_and_is_utc_without_one(text: str, moment_us: int) -> None:
    assert from_rfc3339(text) == moment_us


@pytest.mark.parametrize("text", ["", "yesterday", "1970-13-01", "1970-01-01T25:00:00Z"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|month|hour"):
        from_rfc3339(text)
