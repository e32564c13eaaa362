"""What the fields of events, options and views are said to mean."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
from msgspec import Meta, Struct

from aetherscale.debugger.fields import fields_of, meanings_of, parts_of
from aetherscale.docs import described


class Base(Struct):
    first: int
    """How many
    there are."""


class Whole(Base):
    second: Annotated[str, Meta(pattern="^x", description="a text that begins with x")] | None
    """What it is called; null for nothing."""
    third: Annotated[int, Meta(ge=1, description="seconds")]
    """How long it lasts, in seconds."""
    fourth: Annotated[int, Meta(ge=1, description="seconds")]
    parts: list[dict[str, Base]]
    """Others."""


@pytest.mark.parametrize("struct", described(), ids=lambda struct: struct.__name__)
def test_every_field_has_its_meaning(struct: type[Struct]) -> None:
    meanings = meanings_of(struct)
    assert set(struct.__struct_fields__) == set(meanings), "a docstring below each field says what it means"
    for name, meaning in meanings.items():
        assert re.fullmatch(r"[A-Z].*\.", meaning), f"{name}: a sentence"


def test_the_described_fields_are_those_of_events_options_and_views() -> None:
    names = {struct.__name__ for struct in described()}
    assert {"VmBooted", "VmSpec", "NameClaimed", "CreateVmOptions", "ListImagesOptions", "VmView", "ExitView"} <= names


def test_a_meaning_is_the_docstring_below_a_field_of_the_class_or_its_bases() -> None:
    assert meanings_of(Whole) == {
        "first": "How many there are.",
        "second": "What it is called; null for nothing.",
        "third": "How long it lasts, in seconds.",
        "parts": "Others.",
    }


def test_a_field_says_what_it_means_and_what_text_it_takes() -> None:
    assert [field.about for field in fields_of(Whole)] == [
        "How many there are.",
        "What it is called; null for nothing. Expected: a text that begins with x.",
        "How long it lasts, in seconds.",
        "seconds",
        "Others.",
    ]


def test_the_parts_of_a_struct_are_found_in_lists_and_objects() -> None:
    assert list(parts_of(Whole)) == [Base]
