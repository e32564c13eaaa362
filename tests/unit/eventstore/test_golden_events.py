"""Every event that a released version has written can be read, and a changed shape does not go unnoticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from aetherscale.components import kinds
from aetherscale.eventstore.codec import Codec
from aetherscale.kernel.messages import Event
from aetherscale.kernel.registry import event_types
from tests.support.golden import DIRECTORY, problems, write_missing


def test_every_event_type_has_its_golden_files_and_is_written_as_they_say() -> None:
    types = event_types(kinds())
    assert problems(DIRECTORY, Codec(types), types) == []


# --- the check itself, on events of its own --------------------------------------------------------------------------


def moved() -> type[Event]:
    class Moved(Event, frozen=True):
        where: str
        how_far: int
        marks: tuple[bytes, ...] = ()

    return Moved


def moved_with_a_new_field() -> type[Event]:
    class Moved(Event, frozen=True):
        where: str
        how_far: int
        marks: tuple[bytes, ...] = ()
        how_fast: int = 0

    return Moved


def moved_with_a_renamed_field() -> type[Event]:
    class Moved(Event, frozen=True):
        place: str
        how_far: int
        marks: tuple[bytes, ...] = ()

    return Moved


def moved_with_another_order() -> type[Event]:
    class Moved(Event, frozen=True):
        how_far: int
        where: str
        marks: tuple[bytes, ...] = ()

    return Moved


def moved_of_schema_2() -> type[Event]:
    class Moved(Event, frozen=True):
        SCHEMA: ClassVar[int] = 2
        place: str
        how_far: int
        marks: tuple[bytes, ...] = ()

    return Moved


def upcast(payload: dict[str, Any]) -> dict[str, Any]:
    return {"place": payload["where"], **{key: value for key, value in payload.items() if key != "where"}}


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    first = moved()
    assert [path.name for path in write_missing(tmp_path, Codec([first]), [first])] == ["Moved.1.json"]
    assert problems(tmp_path, Codec([first]), [first]) == []
    return tmp_path


def test_a_missing_file_is_seen(golden: Path) -> None:
    (golden / "Moved.1.json").unlink()
    first = moved()
    assert "missing" in problems(golden, Codec([first]), [first])[0]


@pytest.mark.parametrize("changed", [moved_with_a_new_field, moved_with_a_renamed_field, moved_with_another_order])
def test_a_changed_shape_of_the_same_schema_is_seen(golden: Path, changed: Any) -> None:
    event_type = changed()
    assert len(problems(golden, Codec([event_type]), [event_type])) == 1


def test_a_new_schema_with_an_upcaster_is_well(golden: Path) -> None:
    second = moved_of_schema_2()
    codec = Codec([second], {("Moved", 1): upcast})
    assert [path.name for path in write_missing(golden, codec, [second])] == ["Moved.2.json"]
    assert problems(golden, codec, [second]) == []


def test_an_upcaster_that_makes_nothing_readable_is_seen(golden: Path) -> None:
    second = moved_of_schema_2()
    codec = Codec([second], {("Moved", 1): lambda payload: payload})
    write_missing(golden, codec, [second])
    assert "can no longer be read" in problems(golden, codec, [second])[0]


def test_an_event_type_cannot_be_dropped(golden: Path) -> None:
    assert "for ever" in problems(golden, Codec([]), [])[0]


def test_a_golden_file_cannot_be_rewritten(golden: Path) -> None:
    path = golden / "Moved.1.json"
    path.write_text(path.read_text().replace('"where": "where"', '"where": "elsewhere"'))
    first = moved()
    assert "put it back" in problems(golden, Codec([first]), [first])[0]
    assert write_missing(golden, Codec([first]), [first]) == []
