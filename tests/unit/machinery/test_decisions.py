"""The index of the decisions has each page once, and marks those that no longer hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import decisions as tool

ONE = "# 1. The first\n\n**Superseded** by [decision 2](0002-second.md).\n\n**Context.** Long ago.\n"
TWO = "# 2. The second\n\n**Context.** Now.\n"


def written(directory: Path, **pages: str) -> Path:
    for name, text in pages.items():
        (directory / f"{name.removeprefix('_').replace('_', '-')}.md").write_text(text)
    return directory


def test_the_index_is_what_the_pages_say() -> None:
    assert tool.main(["--check"]) == 0, "run `just docs`"
    pages = {path.name for path in tool.DIRECTORY.glob("[0-9]*.md")}
    readme = (tool.DIRECTORY / "README.md").read_text()
    assert len(pages) > 40
    for name in pages:
        assert readme.count(f"]({name})") >= 1, name


def test_each_page_is_listed_once_and_a_superseded_one_is_marked(tmp_path: Path) -> None:
    found = tool.load(written(tmp_path, _0001_first=ONE, _0002_second=TWO, README="# Decisions\n"))
    assert tool.index(found).splitlines()[2:] == [
        "| 1 | ~~[The first](0001-first.md)~~; superseded by [2](0002-second.md) |",
        "| 2 | [The second](0002-second.md) |",
    ]


def test_what_stands_before_the_index_stays() -> None:
    once = tool.page("# Decisions\n\nBy hand.\n", [])
    assert once.startswith("# Decisions\n\nBy hand.\n\n## Index\n")
    assert tool.page(once, []) == once


@pytest.mark.parametrize(
    ("pages", "fault"),
    [
        ({"_0001_first": "# 0001 The first\n"}, "0001-first.md: expected"),
        ({"_0001_first": "# 2. The first\n"}, "0001-first.md: expected"),
        ({"_first": "# 1. The first\n"}, "first.md: expected"),
        ({"_0001_first": "# 1. The first\n", "_0001_again": "# 1. Again\n"}, "the number 1 is also that of"),
        ({"_0001_first": ONE}, "there is no 0002-second.md"),
        ({"_0001_first": ONE, "_0002_other": "# 2. Other\n"}, "there is no 0002-second.md"),
    ],
)
def test_a_page_that_cannot_be_listed_is_named(tmp_path: Path, pages: dict[str, str], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        tool.load(written(tmp_path, **pages))
