"""The entry of the program chooses how it runs."""

from __future__ import annotations

import gc
import sys

import pytest

from aetherscale import __main__ as entry


def test_a_node_runs_on_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop = pytest.importorskip("uvloop")
    assert entry._loop_factory() is uvloop.new_event_loop

    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert entry._loop_factory() is None


def test_a_command_leaves_the_search_for_garbage_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = gc.get_threshold()
    monkeypatch.setattr(sys, "argv", ["aetherscale", "--version"])
    try:
        assert entry.main() == 0
    finally:
        gc.unfreeze()
    assert capsys.readouterr().out.startswith("aetherscale ")
    assert gc.get_threshold() == before
