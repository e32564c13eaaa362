"""`image search`: what the catalogue has, and what of it is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.output import Layout

SEARCH_S: Final = 30.0
LAYOUT: Final = Layout(("NAME", "ABOUT"), ("CATALOGUE", "USER"))
_HEADINGS: Final = ("NAME", "HERE", "USER", "ABOUT", "CATALOGUE")


def search(context: Context) -> None:
    """Show the entries that have a word. Raises `Failure`."""
    options = {"word": context.values["WORD"]} if context.values["WORD"] else {}
    found: list[Mapping[str, Any]] = []
    trouble = ""
    for chunk in context.client.ask("images", "search-images", options, timeout_s=SEARCH_S):
        if chunk["type"] == "item":
            found.append(chunk["catalogue-image"])
        elif chunk["type"] == "result":
            trouble = chunk["trouble"]
    if trouble:
        context.suggest(f"the catalogue of this node could not be read, so that of before is shown: {trouble}")
    if context.out.json:
        context.out.value(found)
    elif found:
        rows = [_row(entry) for entry in found]
        context.out.table(_HEADINGS, rows, 1, LAYOUT)
        for said in _beside(found):
            context.out.note(said)
        context.suggest("next: aetherscale vm create --image NAME, which fetches what is not here")
    else:
        word = context.values["WORD"]
        context.suggest(f"the catalogue has nothing with {word!r}; to see all of it: aetherscale image search")


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if entry["local"] is None:
        here = "no" if entry["url"] else "never"
    else:
        here = entry["local"] if entry["is-of-catalogue"] else "another"
    return entry["name"], here, entry["user"] or "-", entry["about"], entry["catalogue"]


def _beside(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What HERE has no room for."""
    for entry in found:
        if entry["local"] is not None and not entry["is-of-catalogue"]:
            yield f"{entry['name']}: the image of that name that is here comes from {entry['source']}"
    if any(entry["local"] is None and not entry["url"] for entry in found):
        yield "never: the catalogue has no file for the architecture of the node's host"
