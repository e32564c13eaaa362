"""Writes the index of docs/decisions/README.md: each page once, with its subject in one line.

    python -m tools.decisions            write the index
    python -m tools.decisions --check    exit 1 where it is not up to date

A page is called `NNNN-….md` and begins with `# N. Subject`. One that no longer holds says so in a line of its own,
`**Superseded** by [decision N](NNNN-….md).`, and is marked in the index.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

DIRECTORY: Final = Path(__file__).parents[1] / "docs/decisions"
HEADING: Final = "\n## Index\n"
MADE: Final = "<!-- Made from the pages by `just docs`. Change those, not this list. -->"
_FILE: Final = re.compile(r"(?P<number>[0-9]{4})-[a-z0-9-]+\.md")
_TITLE: Final = re.compile(r"# (?P<number>[1-9][0-9]*)\. (?P<subject>[^\n]+)\n")
_SUPERSEDED: Final = re.compile(
    r"^\*\*Superseded\*\* by \[decision (?P<number>[0-9]+)\]\((?P<file>[^)]+)\)", re.MULTILINE
)


class Decision(Struct, frozen=True):
    """A page: its file, its number and subject, and the number and file of the one that has superseded it."""

    file: str
    number: int
    subject: str
    by: tuple[int, str] | None


def load(directory: Path) -> list[Decision]:
    """All pages by number. Raises ValueError that names the page that is not as it has to be."""
    found = [_page(path) for path in sorted(directory.glob("*.md")) if path.name != "README.md"]
    files = {each.number: each.file for each in found}
    if len(files) != len(found):
        twice = next(each for each in found if files[each.number] != each.file)
        raise ValueError(f"{twice.file}: the number {twice.number} is also that of {files[twice.number]}")
    for each in found:
        if each.by is not None and files.get(each.by[0]) != each.by[1]:
            raise ValueError(f"{each.file}: superseded by decision {each.by[0]}, but there is no {each.by[1]}")
    return found


def _page(path: Path) -> Decision:
    named, text = _FILE.fullmatch(path.name), path.read_text()
    titled = _TITLE.match(text)
    if named is None or titled is None or int(named["number"]) != int(titled["number"]):
        raise ValueError(f"{path.name}: expected a file NNNN-….md that begins with '# N. Subject'")
    by = _SUPERSEDED.search(text)
    superseded = (int(by["number"]), by["file"]) if by else None
    return Decision(path.name, int(titled["number"]), titled["subject"], superseded)


def index(decisions: Sequence[Decision]) -> str:
    """The table of all pages."""
    return "\n".join(("| number | decision |", "| --- | --- |", *_rows(decisions)))


def _rows(decisions: Sequence[Decision]) -> Iterator[str]:
    for each in decisions:
        subject = f"[{each.subject}]({each.file})".replace("|", "\\|")
        by = f"; superseded by [{each.by[0]}]({each.by[1]})" if each.by else ""
        yield f"| {each.number} | {f'~~{subject}~~' if by else subject}{by} |"


def page(text: str, decisions: Sequence[Decision]) -> str:
    """The text of the README with the index that it should have."""
    head, _, _ = text.partition(HEADING)
    return f"{head.rstrip()}\n{HEADING}\n{MADE}\n\n{index(decisions)}\n"


def main(arguments: Sequence[str]) -> int:
    """Write or check the index; answers with the exit status."""
    readme = DIRECTORY / "README.md"
    wanted = page(readme.read_text(), load(DIRECTORY))
    if "--check" not in arguments:
        readme.write_text(wanted)
    elif readme.read_text() != wanted:
        print(f"{readme} is not what the pages say; `just docs` writes it anew", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
