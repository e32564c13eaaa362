"""The entry of the program chooses how it runs."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

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


def test_a_node_without_networks_goes_without_the_netlink_library() -> None:
    code = (
        "import sys, aetherscale.runtime.app; from aetherscale.components import components; components()\n"
        "from aetherscale.actors.network.hands import open_hands\n"
        "print('pyroute2' in sys.modules); from aetherscale.actors.network.netlink.links import Links\n"
        "Links('n'); print('pyroute2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


CLOSES = """
import os, sys
for descriptor in map(int, sys.argv[1].split()):
    os.close(descriptor)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
TELLS = """
import os, sys
from aetherscale.__main__ import stand_in_for_closed_descriptors
stand_in_for_closed_descriptors()
places = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
whole = all(os.get_inheritable(number) for number in range(3))
names = [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)]
with open(PATH, "w") as told:
    print([place == "/dev/null" for place in places], names, whole, file=told)
"""


@pytest.mark.parametrize("closed", ["", "0", "1", "2", "0 1", "1 2", "0 2", "0 1 2"])
def test_descriptors_that_are_closed_at_the_start_are_opened_on_dev_null(closed: str, tmp_path: Path) -> None:
    program = TELLS.replace("PATH", repr(str(tmp_path / "told")))
    with (tmp_path / "file").open("w+b") as file:
        subprocess.run(
            [sys.executable, "-c", CLOSES, closed, program], stdin=file, stdout=file, stderr=file, check=True
        )
    told = (tmp_path / "told").read_text().strip()
    assert told == f"{[str(number) in closed.split() for number in range(3)]} [0, 1, 2] True"


@pytest.mark.parametrize("entry_point", ["main", "flat"])
def test_every_command_begins_with_that(entry_point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(entry, "stand_in_for_closed_descriptors", lambda: called.append("stood in"))

    def work(_: object) -> int:
        called.append("work")
        return 0

    monkeypatch.setattr(entry, "_briefly", work)
    assert getattr(entry, entry_point)() == 0
    assert called == ["stood in", "work"]
