"""What humans read fits a terminal of 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from aetherscale.gateways.cli import help as texts
from aetherscale.gateways.cli.failures import Failure, bad_usage
from aetherscale.gateways.cli.grammar import Command, Group
from aetherscale.gateways.cli.hostbridge import NEXT
from aetherscale.gateways.cli.output import Output
from aetherscale.gateways.cli.tree import ENTRIES

COLUMNS = 80


def helps() -> Iterator[tuple[str, str]]:
    """Every page of help, with what it is of."""
    yield "aetherscale", texts.help_of_program(ENTRIES, "aetherscale", "about")
    for entry in ENTRIES:
        yield from _below(entry.load(), f"aetherscale {entry.name}")


def _below(node: Command | Group, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Command):
        yield name, texts.help_of_command(node, name)
        for part in node.parts.values():
            yield f"{name} {part.name}", texts.help_of_command(part, f"{name} {part.name}")
        return
    yield name, texts.help_of_group(node, name)
    for member in node.members:
        yield from _below(member, f"{name} {member.name}")


@pytest.mark.parametrize(("name", "text"), [pytest.param(*page, id=page[0]) for page in helps()])
def test_help_fits(name: str, text: str) -> None:
    assert [line for line in text.splitlines() if len(line) >= COLUMNS] == []


def test_a_paragraph_is_broken_between_words_and_indented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    Output(json=False).paragraph("  12:00:00.000  " + "word-by-word " * 12, 16)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("  12:00:00.000  word-by-word")
    assert others
    assert all(line.startswith(" " * 16 + "word-by-word") for line in others)
    assert all(len(line) < COLUMNS for line in (first, *others))


LONG = "word-by-word " * 12


def test_on_a_terminal_fields_and_what_stands_beside_the_data_are_broken_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    out = Output(json=False)
    command = f"next: aetherscale vm create {'--label a=b ' * 9}"
    out.fields([("short", "a  b"), ("troubles", LONG), ("next", command)])
    out.note(LONG)
    out.caution(LONG)
    out.failure(Failure(500, LONG, is_note=True))
    written = capsys.readouterr()
    lines = written.out.splitlines()
    assert lines[0] == "short     a  b"
    assert all(line.startswith(" " * 10 + "word-by-word") for line in lines[2:-1])
    assert lines[-1] == f"next      {command}", "a command stays in one line, to be copied"
    assert all(len(line) < COLUMNS for line in (*lines[:-1], *written.err.splitlines()))
    assert written.err.count("note: word-by-word") == 2
    assert written.err.split().count("word-by-word") == 3 * 12


def test_an_error_that_names_what_was_typed_is_broken_and_the_command_of_its_hint_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    hint = f"aetherscale network create --help {'--kind ' * 10}"
    Output(json=False).failure(bad_usage(f"aetherscale network create: --kind: {LONG}", hint))
    *error, last = capsys.readouterr().err.splitlines()
    assert len(error) > 1
    assert all(len(line) < COLUMNS for line in error)
    assert last == f"hint: {hint}"


def test_the_way_to_confirm_a_bridge_is_a_line_of_its_own_that_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    Output(json=False).note(NEXT)
    lines = capsys.readouterr().err.splitlines()
    assert "    aetherscale host setup bridge --confirm" in lines
    assert all(len(line) < COLUMNS for line in lines)


def test_elsewhere_fields_and_notes_stay_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=False).fields([("troubles", LONG)])
    Output(json=False).note(LONG)
    written = capsys.readouterr()
    assert (written.out.count("\n"), written.err.count("\n")) == (1, 1)


def test_elsewhere_a_paragraph_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=False).paragraph("word " * 50, 4)
    assert capsys.readouterr().out.count("\n") == 1
