"""Names, ids and moments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.bus.refusals import hint
from aetherscale.kernel.errors import Reason
from aetherscale.kernel.names import ambiguous, derive_id, is_id, is_name, is_short_id
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


@pytest.mark.parametrize(("digits", "short"), [(3, False), (4, True), (15, True), (16, False)])
def test_the_beginning_of_an_id_has_four_digits_and_is_no_whole_id(digits: int, short: bool) -> None:
    assert is_short_id("0123456789abcdef"[:digits]) is short


@pytest.mark.parametrize("text", ["web1", "abcd", "12g4", "12AB", ""])
def test_what_begins_no_id(text: str) -> None:
    assert not is_short_id(text)


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (2, "2 ids: web0 (120000), web1 (120001)"),
        (5, "5 ids: web0 (120000), web1 (120001), web2 (120002), web3 (120003), web4 (120004)"),
        (7, "7 ids: web0 (120000), web1 (120001), web2 (120002), web3 (120003), web4 (120004) and 2 more"),
    ],
)
def test_who_is_meant_by_the_beginning_of_several_ids_is_named_up_to_five(count: int, named: str) -> None:
    refusal = ambiguous("1200", [(f"12000{number}", f"web{number}") for number in reversed(range(count))], "vm-id")
    assert (refusal.reason, refusal.message, refusal.field) == (
        Reason.BAD_REQUEST,
        f"'1200' is the beginning of {named}",
        "vm-id",
    )
    assert hint(refusal.remedy) == "give more of the id, or the name"


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
