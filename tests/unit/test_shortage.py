"""What a process has too little of: said as such, with what gives it more, and never as a fault of the program."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale import shortage
from aetherscale.bus.tasks import Tasks
from aetherscale.eventstore.sqlite.connection import full
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.findings import Finding
from aetherscale.runtime.effects import EffectRunner
from aetherscale.settings import Settings, load_settings
from aetherscale.setup import doctor


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel answers where a control group has all the tasks that it may have."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_python_says_it_in_these_words(no_threads: None) -> None:
    with pytest.raises(RuntimeError) as raised:
        threading.Thread(target=int).start()
    assert shortage.lacks_threads(raised.value)
    with pytest.raises(RuntimeError) as raised:
        threading.Thread(target=int).join()
    assert shortage.lacks_threads(raised.value)
    assert not shortage.lacks_threads(RuntimeError("another"))
    assert not shortage.lacks_threads(ValueError("can't start new thread"))


def test_the_real_python_does(tmp_path: Path) -> None:
    """A process that may have no more threads: by a limit of its user, to which root is not held."""
    program = (
        "import resource, threading\n"
        "from aetherscale import shortage\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "try:\n    threading.Thread(target=int).start()\n"
        "except RuntimeError as error:\n    print(shortage.lacks_threads(error))\n"
    )
    as_nobody = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*as_nobody, sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    if "Permission denied" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip("another user may not read the tree")
    assert done.stdout == "True\n", done.stderr


async def test_work_that_gets_no_thread_has_failed_and_is_no_fault_of_the_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[EffectFailed] = []

    async def perform(aggregate_id: str, effect: Any) -> str:
        raise RuntimeError("can't start new thread")

    nowhere: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    work = EffectRunner(lambda _: None, perform, lambda *_: nowhere, lambda: 0, Tasks("t"))
    answers.append(await work._outcome("x", Effect()))
    assert answers == [EffectFailed("k", f"{shortage.THREADS}: {shortage.MORE_THREADS}")]
    assert "Traceback" not in caplog.text


class Effect:
    key, not_before_us, deadline_s = "k", 0, 5.0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EFBIG, errno.ENOMEM])
def test_each_has_its_own_hint(number: int) -> None:
    assert shortage.hint_of(number)


def test_what_depends_on_what_was_tried_has_none() -> None:
    assert (shortage.hint_of(errno.EACCES), shortage.hint_of(None)) == ("", "")


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The limits of this process as it is told them; without one, unlimited."""
    set_to: dict[int, int] = {}

    def getrlimit(which: int) -> tuple[int, int]:
        most = set_to.get(which, resource.RLIM_INFINITY)
        return most, most

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    return set_to


def test_a_full_file_is_told_from_a_full_disk_only_where_there_is_a_limit(limits: dict[int, int]) -> None:
    assert str(full(Path("/s/events.db"))).startswith("/s/events.db: the disk is full: nothing was written;")
    limits[resource.RLIMIT_FSIZE] = 4096
    assert "as large as the node may make one (4096 bytes: ulimit -f" in str(full(Path("/s/events.db")))


def test_without_limits_none_is_low(limits: dict[int, int]) -> None:
    assert list(shortage.low_limits()) == []


@pytest.mark.parametrize(
    ("which", "least", "mend"),
    [
        (resource.RLIMIT_FSIZE, shortage.FILE_FLOOR_BYTES, "ulimit -f"),
        (resource.RLIMIT_NOFILE, shortage.OPEN_FILES_FLOOR, "ulimit -n"),
        (resource.RLIMIT_NPROC, shortage.PROCESSES_FLOOR, "ulimit -u"),
        (resource.RLIMIT_AS, shortage.ADDRESS_FLOOR_BYTES, "ulimit -v"),
    ],
)
def test_a_limit_is_low_below_its_floor(
    limits: dict[int, int], monkeypatch: pytest.MonkeyPatch, which: int, least: int, mend: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    limits[which] = least
    assert list(shortage.low_limits()) == []
    limits[which] = least - 1
    (low,) = shortage.low_limits()
    assert mend in low.remedy


def test_root_is_not_held_to_a_number_of_processes(limits: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    limits[resource.RLIMIT_NPROC] = 1
    assert list(shortage.low_limits()) == []


def test_a_check_of_doctor_that_cannot_be_made_is_a_finding_and_the_others_go_on() -> None:
    def _of_something(settings: Settings) -> Iterator[Finding]:
        yield Finding("first", "ok", "")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/x")

    found = list(doctor._made(_of_something, load_settings({}, {})))
    assert found[1] == Finding(
        "of something", "error", "could not be looked at: /x: Too many open files", shortage.hint_of(errno.EMFILE)
    )
