"""`image search` on a terminal: what the program's catalogue has fits into 80 columns, whatever is here."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aetherscale.actors.images.catalogue.catalogues import Catalogues
from aetherscale.actors.images.model.views import ImagePhase
from aetherscale.gateways.cli import imagecatalogue, tables

FETCHED = {"is-of-catalogue": True, "source": "https://images.example/one.qcow2"}
OWN = {"is-of-catalogue": False, "source": "/srv/images/with/a/long/path/to/another-image-of-that-name.qcow2"}


def entries(**changed: Any) -> list[dict[str, Any]]:
    """The program's catalogue as a node tells it."""
    told = ((whose, msgspec.to_builtins(entry)) for whose, entry in Catalogues().entries())
    return [{**entry, "catalogue": whose, "local": None, "source": None, **FETCHED, **changed} for whose, entry in told]


@pytest.mark.parametrize(
    "changed",
    [
        {"local": None},
        {"local": None, "url": None},
        {"local": "ready", **OWN},
        *({"local": phase} for phase in msgspec.inspect.type_info(ImagePhase).values),  # type: ignore[attr-defined]
    ],
)
def test_a_line_for_each_image_in_80_columns(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = entries(**changed)
    tables.draw(imagecatalogue._HEADINGS, [imagecatalogue._row(each) for each in found], 1, imagecatalogue.LAYOUT)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 + len(found), "nothing goes on in another line"
    assert lines[0].split() == list(imagecatalogue._HEADINGS), "no column is left out"
    assert max(map(len, lines)) <= 80


def test_what_the_column_has_no_room_for_is_said_below() -> None:
    (own, *_), unfit = entries(local="ready", **OWN), entries(url=None)
    assert list(imagecatalogue._beside([own, *unfit])) == [
        f"{own['name']}: the image of that name that is here comes from {OWN['source']}",
        "never: the catalogue has no file for the architecture of the node's host",
    ]
    assert list(imagecatalogue._beside([*entries(), *entries(local="ready")])) == []
