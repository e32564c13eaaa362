"""One process at a time acts on the bridge of a host, and the lock goes with the last trial."""

from __future__ import annotations

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aetherscale.setup.bridgetrial import Places, acting, is_acting

PATIENCE_S = 30.0


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "run", tmp_path / "etc/bridge.json", tmp_path / "units")


def test_nothing_is_left_of_a_lock_when_no_trial_is_recorded(places: Places) -> None:
    with acting(places):
        assert is_acting(places)
        assert places.lock.read_text().split()[0] == str(os.getpid())
    assert not is_acting(places)
    assert not places.run.exists()


def test_nor_where_the_work_failed(places: Places) -> None:
    with pytest.raises(KeyboardInterrupt), acting(places):
        raise KeyboardInterrupt
    assert not places.run.exists()


def test_the_lock_stays_with_a_trial_and_goes_with_it(places: Places) -> None:
    with acting(places):
        places.trial.write_text("{}")
    assert places.lock.exists()
    with acting(places):
        places.trial.unlink()
    assert not places.run.exists()


def test_files_of_others_stay(places: Places) -> None:
    places.run.mkdir()
    (places.run / "note").touch()
    with acting(places):
        pass
    assert list(places.run.iterdir()) == [places.run / "note"]


@pytest.mark.parametrize("wait_s", [None, PATIENCE_S])
def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(places: Places, wait_s: float | None) -> None:
    """Another process would make the next one, and both would act."""
    places.run.mkdir()
    removed = os.open(places.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(removed, fcntl.LOCK_EX)
    acts, ends = threading.Event(), threading.Event()

    def act() -> None:
        with acting(places, wait_s=wait_s):
            acts.set()
            assert ends.wait(PATIENCE_S)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(act)
        while f":{os.fstat(removed).st_ino} " not in waiting() and wait_s is None:
            assert not acts.is_set()
        places.lock.unlink()
        os.close(removed)
        assert acts.wait(PATIENCE_S)
        is_held = is_acting(places)
        ends.set()
        done.result(PATIENCE_S)
    assert is_held
    assert not places.run.exists()


def waiting() -> str:
    """The locks that are waited for, by their inodes."""
    return "\n".join(line for line in Path("/proc/locks").read_text().splitlines() if "->" in line)


def test_no_two_act_at_a_time_however_often_the_lock_is_removed(places: Places) -> None:
    inside: list[int] = []
    together: list[int] = []

    def act(number: int) -> None:
        for _ in range(50):
            with acting(places):
                inside.append(number)
                together.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(8)))
    assert together == [1] * 400
    assert not places.run.exists()
