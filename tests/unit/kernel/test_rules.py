"""What a value has to be, in words: each type at its bounds, and the first part of it that is wrong."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, inspect

from aetherscale.kernel.names import IMAGE_NAME_PATTERN, NAME_PATTERN
from aetherscale.kernel.rules import Broken, broken, shown

Ports = Annotated[int, Meta(ge=1, le=10)]
Share = Annotated[float, Meta(gt=0, lt=1.5)]
Short = Annotated[str, Meta(min_length=1, max_length=3)]
Pair = Annotated[list[Ports], Meta(min_length=1, max_length=2)]
Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="a name")]
Image = Annotated[str, Meta(pattern=IMAGE_NAME_PATTERN)]


def rule(kind: Any, value: Any) -> str | None:
    found = broken(inspect.type_info(kind), value)
    return found.rule if found is not None else None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Ports, 1), (Ports, 10), (Share, 0.1), (Share, 1), (Share, 1.4), (float, 3), (int, 0), (bool, True),
        (Short, "a"), (Short, "abc"), (str, ""), (Pair, [1]), (Pair, [1, 10]), (list[int], []), (dict[str, int], {}),
        (dict[str, Ports], {"a": 1}), (int | None, None), (Short | None, "a"), (Literal["a", "b"], "b"),
        (Name, "web"), (Any, object()),
    ],
)  # fmt: skip
def test_what_is_within_its_bounds_breaks_nothing(kind: Any, value: Any) -> None:
    assert rule(kind, value) is None


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Ports, 0, "a whole number from 1 to 10"),
        (Ports, 11, "a whole number from 1 to 10"),
        (Ports, True, "a whole number from 1 to 10"),
        (Ports, 1.0, "a whole number from 1 to 10"),
        (Ports, "1", "a whole number from 1 to 10"),
        (Share, 0, "a number above 0 below 1.5"),
        (Share, 1.5, "a number above 0 below 1.5"),
        (Share, "x", "a number above 0 below 1.5"),
        (float, None, "a number"),
        (Annotated[int, Meta(ge=1, description="MiB")], 0, "a whole number from 1 (MiB)"),
        (bool, 1, "true or false"),
        (str, 1, "a text"),
        (Short, "", "a text of 1 to 3 characters"),
        (Short, "abcd", "a text of 1 to 3 characters"),
        (Pair, [], "a list of 1 to 2 members"),
        (Pair, [1, 2, 3], "a list of 1 to 2 members"),
        (Pair, {}, "a list of 1 to 2 members"),
        (Pair, [1, 11], "a whole number from 1 to 10"),
        (list[int], "x", "a list"),
        (dict[str, int], [], "an object"),
        (dict[str, Ports], {"a": 1, "b": 0}, "a whole number from 1 to 10"),
        (dict[Short, int], {"abcd": 1}, "a text of 1 to 3 characters"),
        (Ports | None, 0, "a whole number from 1 to 10"),
        (Literal["a", "b"], "c", "one of a, b"),
        (Name, "-", "a name"),
    ],
)
def test_what_is_beyond_them_is_told_with_the_rule(kind: Any, value: Any, expected: str) -> None:
    assert rule(kind, value) == expected


def test_a_text_that_is_too_long_is_told_by_its_length() -> None:
    assert broken(inspect.type_info(Short), "abcd") == Broken("4 characters", "a text of 1 to 3 characters")
    letters = inspect.type_info(Annotated[str, Meta(max_length=3, pattern="^[a-z]+$")])
    assert broken(letters, "$$$") == Broken("$$$", "a text of at most 3 characters")


def test_a_name_that_would_do_is_proposed() -> None:
    assert broken(inspect.type_info(Name), "My Web") == Broken("My Web", "a name", "my-web")
    found = broken(inspect.type_info(Image), "My Image.v1")
    assert found is not None
    assert (found.rule, found.instead) == ("", "my-image.v1")


def test_values_are_shown_short_and_without_what_may_be_secret() -> None:
    for value, text in (
        ("nats://joe:secret@host", "an address"),
        ("x" * 80, repr("x" * 80)),
        ("x" * 81, repr("x" * 80 + "…")),
        (True, "true"),
        (None, "null"),
        (16777216, "16777216"),
        (0.5, "0.5"),
        (10**100, str(10**79)),
        ([], "an empty list"),
        ([1], "a list of 1"),
        ({}, "an object"),
    ):
        assert shown(value) == text
    assert str(Broken(7, "a text")) == "got 7, expected a text"
