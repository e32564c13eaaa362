"""The documentation uses the words of docs/glossary.md, and not those that they have replaced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.node import ROOT

RETIRED = re.compile(r"\b(?:whoever|somebody|nobody|lanes?|owe[ds]?|twins?|upkeep|the hand on)\b", re.IGNORECASE)
"""Words of our own for which the field has a word: caller, user, mailbox, pending, fake, maintenance, driver."""
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
NOT_READ = ("CHANGELOG.md", "PROMISES.md", "limits.md")
"""What was said of a version stays as it was; the other two quote the names of tests."""


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in NOT_READ], ids=lambda page: page.name)
def test_no_page_has_a_retired_word(page: Path) -> None:
    lines = enumerate(page.read_text().splitlines(), 1)
    found = [f"{page.name}:{number}: {line}" for number, line in lines if RETIRED.search(line)]
    assert found == [], "docs/glossary.md has the word to use"


def test_every_page_of_the_docs_is_listed() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_name_of_the_code_in_the_glossary_is_there() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = re.findall(r"`((?:[A-Z][a-z]+){2,})`", (ROOT / "docs/glossary.md").read_text())
    assert len(named) > 5
    for name in named:
        assert f"class {name}(" in source or f"class {name}:" in source, f"the code has no {name} any more"
