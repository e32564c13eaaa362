"""docs/limits.md has every bound of the code, and names what is there; the check sees what it is for."""

from __future__ import annotations

from msgspec.structs import replace

from tools import limits as page


def test_the_page_is_what_the_code_says_and_nothing_is_missing() -> None:
    limits, none = page.load()
    assert list(page.faults_of(limits, none)) == []
    assert page.PAGE.read_text() == page.page(limits), "run `just limits`"


def test_a_bound_that_is_described_nowhere_is_seen() -> None:
    limits, none = page.load()
    (fault,) = page.faults_of(limits[1:], none)
    assert fault.startswith(f"{limits[0].name} looks like a bound")


def test_what_is_named_and_not_there_is_seen() -> None:
    limits, none = page.load()
    lost = replace(limits[0], shown_by=["tests/unit/kernel/test_wire.py::test_nothing"])
    (fault,) = page.faults_of([lost, *limits[1:]], none)
    assert fault.startswith("there is no test tests/unit/kernel/test_wire.py::test_nothing")
    (fault,) = page.faults_of([replace(limits[0], shown_by=[]), *limits[1:]], none)
    assert fault == f"no test runs into {limits[0].name}"
    (fault,) = page.faults_of(limits, {*none, "aetherscale.nowhere:LIMIT"})
    assert fault == "there is no constant aetherscale.nowhere:LIMIT"


def test_a_code_that_is_not_sent_there_is_seen() -> None:
    limits, none = page.load()
    at = next(at for at, limit in enumerate(limits) if limit.name.endswith(":SESSION_LIMIT"))
    wrong = replace(limits[at], says="More consoles of a node at a time are refused (503).")
    (fault,) = page.faults_of([*limits[:at], wrong, *limits[at + 1 :]], none)
    assert (
        fault == "aetherscale.actors.compute.console:SESSION_LIMIT says (503), and the code that reads it sends [409]"
    )
    assert page.codes_at(page.SOURCE, "MAX_OPEN_STREAMS") >= {503}


def test_a_value_is_shown_with_its_unit() -> None:
    assert page.shown_value("aetherscale.kernel.wire:MAX_BODY_BYTES") == "256 KiB"
    assert page.shown_value("aetherscale.bus.jetstream:DUPLICATE_WINDOW_NS") == "1 s"
    assert page.shown_value("aetherscale.runtime.mailboxes:MAILBOX_LIMIT") == "256"
