"""The generated pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import aetherscale
from aetherscale.components import kinds
from aetherscale.docs import DOCS, MADE, main, pages, with_sections
from aetherscale.kernel.registry import event_types

SOURCE = Path(aetherscale.__file__).parent


def test_the_pages_are_what_the_code_says() -> None:
    assert main(["--check"]) == 0, "run `just docs`"


def test_a_stale_page_fails_the_check(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    page = tmp_path / "events.md"
    page.write_text(page.read_text().replace("VmBooted", "VmBoted", 1))
    assert main(["--check", str(tmp_path)]) == 1
    page.unlink()
    assert main(["--check", str(tmp_path)]) == 1


def test_a_page_keeps_what_is_written_by_hand_around_the_sections_that_are_made() -> None:
    page = "# Head\n\n## One\n\nold\n\n### below\n\n## Two\n\nby hand\n\n## Three\n"
    made = with_sections(page, {"One": ["new"], "Three": ["last"]})
    assert made == f"# Head\n\n## One\n\n{MADE}\n\nnew\n\n## Two\n\nby hand\n\n## Three\n\n{MADE}\n\nlast\n"
    assert with_sections(made, {"One": ["new"], "Three": ["last"]}) == made
    with pytest.raises(ValueError, match="no section 'Four'"):
        with_sections(page, {"Four": []})


@pytest.mark.parametrize("word", ["--grace TIME", "aetherscale vm stop web --kill"])
def test_a_word_of_the_grammar_that_the_page_lacks_fails_the_check(tmp_path: Path, word: str) -> None:
    assert main([str(tmp_path)]) == 0
    page = tmp_path / "cli.md"
    page.write_text(page.read_text().replace(word, "", 1))
    assert main(["--check", str(tmp_path)]) == 1


def test_every_event_and_every_task_has_its_section() -> None:
    made = pages()
    for event in event_types(kinds()):
        assert f"### {event.__name__}\n" in made["events.md"]
    for task in ("create-vm", "list-vms", "vm-console", "build-image", "image-info"):
        assert f"### {task}\n" in made["subjects.md"]


@pytest.mark.parametrize(
    "words",
    [
        "no node answers",
        "fell silent",
        "is stopping",
        "no such VM",
        "no such image",
        "exists already",
        "is being deleted",
        "before it was ready",
        "the VM is not running",
        "is in use by",
        "is too small for the image",
        "not in this version",
        "does not work in this version",
        "was used for another request",
        "after its deadline",
        "the disk is full",
        "no room for a disk",
        "not enough memory",
        "is not installed",
        "QEMU is unresponsive",
        "QEMU ended at its start",
        "the guest's kernel panicked",
        "the guest shut itself down",
        "exit status unknown",
        "the host was rebooted",
        "image rejected",
        "this host has no",
        "no guest agent answers in this VM",
        "the guest does not read its serial line",
        "log damaged at",
        "another process writes to this log",
        "this is the log of node",
        "which this version does not know",
    ],
)
def test_the_runbook_speaks_of_what_a_user_meets_in_the_words_of_the_code(words: str) -> None:
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    joined = re.sub(r'"\s+f?"', "", source)
    assert words in joined, "nothing says this any more"
    assert words in " ".join((DOCS / "runbook.md").read_text().split()), "the runbook does not have it"
