"""Tables on a terminal, fitted to its width. Rich, which draws them, is imported only with this."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aetherscale.gateways.cli.output import Layout

GAP: Final = 2
LEAST_WIDTH: Final = 72
"""A terminal that says that it has fewer columns gets lines that it has to break itself."""
LEAST_FOLDED: Final = 20
"""Where a name goes on in the next line however much is left out, it has this much of each."""
LEAST_CUT: Final = 12
"""A column with less than this of its text says nothing, and is left out."""

STYLES: Final = {
    "ready": "green",
    "running": "green",
    "failed": "bold red",
    "paused": "yellow",
    "stopped": "dim",
    "deleted": "dim",
}
"""How phases look on a terminal; every other one is on its way and cyan."""


def is_too_wide(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the terminal would break the lines of the whole table."""
    widths = [max(map(cell_len, column)) for column in zip(headers, *rows, strict=True)]
    return sum(widths) + GAP * (len(widths) - 1) > Console().width


def draw(headers: Sequence[str], rows: Sequence[Sequence[str]], styled: int | None, layout: Layout) -> None:
    """Write a table to stdout."""
    width = max(Console().width, LEAST_WIDTH)
    console = Console(file=sys.stdout, highlight=False, width=width)
    widths = [max(map(cell_len, column)) for column in zip(headers, *rows, strict=True)]
    left_out = _left_out(layout, dict(zip(headers, widths, strict=True)), width)
    kept = [at for at, header in enumerate(headers) if header not in left_out]
    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for at in kept:
        is_folded = headers[at] in layout.fold
        drawn.add_column(headers[at], no_wrap=not is_folded, overflow="fold" if is_folded else "ellipsis")
    room = width - sum(widths[at] + GAP for at in kept if headers[at] != layout.cut)
    for row in rows:
        cells = {at: Text(row[at]) for at in kept}
        for at in kept:
            if headers[at] == layout.cut and cell_len(row[at]) > room:
                cells[at] = Text(f"{set_cell_size(row[at], max(room - 1, 1))}…")
            if at == styled:
                cells[at].stylize(STYLES.get(row[at], "cyan"))
        drawn.add_row(*cells.values())
    console.print(drawn)


def _left_out(layout: Layout, widths: Mapping[str, int], width: int) -> set[str]:
    """The columns that are left out, so that the others fit: no more of them than that takes."""
    most = {layout.cut: LEAST_CUT}
    left_out: list[str] = []

    def fits(without: Collection[str]) -> bool:
        sizes = [min(size, most.get(header, size)) for header, size in widths.items() if header not in without]
        return sum(sizes) + GAP * (len(sizes) - 1) <= width

    if not fits((*layout.spare, layout.cut)):
        most |= dict.fromkeys(layout.fold, LEAST_FOLDED)
    for header in (*layout.spare, layout.cut):
        if header and not fits(left_out):
            left_out.append(header)
    for header in reversed(left_out):  # a wide one that went may have left room for others
        without = [each for each in left_out if each != header]
        if fits(without):
            left_out = without
    return set(left_out)
