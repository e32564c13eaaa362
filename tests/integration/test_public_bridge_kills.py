"""The process that sets a bridge up, or undoes it, dies before each change of the host; the guard sees to the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale.gateways.cli.program import BridgeAsked
from aetherscale.setup.bridgetrial import read_trial
from aetherscale.setup.hostbridge import Bridges
from tests.support.guest_namespaces import PATIENCE_S
from tests.support.network_namespaces import missing, network_namespace
from tests.support.node import ROOT
from tests.support.uplink_world import World, dumps, eventually, guard, world

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(300),
]

HOST = os.readlink("/proc/self/ns/net")
ASKED = BridgeAsked("eth0", "br0")
LONG_S = 600.0


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with network_namespace(), world(tmp_path) as made:
        assert os.readlink("/proc/thread-self/ns/net") != HOST, "or this machine would be changed"
        yield made


def bridges(here: World) -> Bridges:
    return Bridges(here.places, period_s=LONG_S, guard=here.guard, root=here.places.run / "no-root")


def begin(here: World, task: str, number: int = 999, how: str = "kill") -> subprocess.Popen[bytes]:
    (here.places.run / "guarded").unlink(missing_ok=True)
    places = [str(path) for path in (here.places.run, here.places.kept, here.places.units)]
    command = [sys.executable, "-m", "tests.support.bridge_taker", task, str(number), how, *places]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)


def ended(here: World, task: str, number: int = 999, how: str = "kill") -> int:
    return begin(here, task, number, how).wait(2 * PATIENCE_S)


def is_over(here: World) -> bool:
    return read_trial(here.places) is None


def wait_until_over(here: World) -> None:
    """The guard has done its work. Where none was there yet, nothing was changed, and the next command sees to it."""
    if (here.places.run / "guarded").exists():
        eventually(lambda: is_over(here))


def deaths(here: World, task: str, how: str) -> Iterator[int]:
    """Die before the first change, the second one, and so on, until none is left; the number of each."""
    for number in range(200):
        status = ended(here, task, number, how)
        if status == 0:
            return
        assert status in (-signal.SIGKILL, 143), status
        yield number


@pytest.mark.parametrize("how", ["kill", "end"])
def test_a_setup_that_dies_at_any_step_leaves_the_host_as_it_was(here: World, how: str) -> None:
    before = dumps()
    count = 0
    for count in deaths(here, "set-up", how):
        wait_until_over(here)
        assert dumps() == before, count
    assert count > 20
    assert not here.places.kept.exists()


def test_an_undo_that_dies_at_any_step_is_finished(here: World) -> None:
    before = dumps()
    for number in range(200):
        list(bridges(here).set_up(ASKED, dry_run=False))
        list(bridges(here).confirm(dry_run=False))
        here.wait_for_guards()
        status = ended(here, "undo", number)
        wait_until_over(here)
        if here.places.kept.exists():  # no guard was there yet
            assert ended(here, "undo") == 0
        assert dumps() == before, number
        assert not here.places.kept.exists()
        if status == 0:
            break
    assert number > 15


def test_a_confirmation_that_dies_at_any_step_has_kept_the_bridge_or_can_be_repeated(here: World) -> None:
    before = dumps()
    assert ended(here, "set-up") == 0
    for _ in deaths(here, "confirm", "kill"):
        assert dumps() != before
        assert here.places.kept.exists() or not is_over(here), "it is on trial until it is kept"
    assert is_over(here)
    assert not here.places.lock.exists()
    assert ended(here, "undo") == 0
    assert dumps() == before


def test_a_setup_that_hangs_is_killed_and_taken_back(here: World) -> None:
    before = dumps()
    hanging = begin(here, "set-up", 12, "stop")
    assert hanging.wait(3 * PATIENCE_S) == -signal.SIGKILL
    eventually(lambda: is_over(here))
    assert dumps() == before


def test_a_guard_that_is_killed_and_started_again_goes_on(here: World) -> None:
    """As systemd does it: `Restart=on-failure`."""
    before = dumps()
    list(bridges(here).set_up(ASKED, dry_run=False))
    (first,) = here.guards
    first.kill()
    first.wait()
    here.guards[:] = [guard(here.places)]
    here.run_out()
    here.wait_for_guards()
    assert dumps() == before
