"""What every supervisor of VMs' processes promises.

That of systemd stands beside the other where systemd runs the host: `just systemd` boots one for this suite.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from aetherscale.actors.compute.qemu import supervision
from aetherscale.actors.compute.qemu.supervision import Limits, Supervisor
from aetherscale.processes import launch
from aetherscale.settings import Supervision
from tests.support.compute_worlds import PATIENCE_S, VM
from tests.support.eventually import asked_until
from tests.support.node import ROOT
from tests.systemd.units import no_units

SUPERVISORS: Final[tuple[Supervision, ...]] = (
    ("detached", "systemd") if Path("/run/systemd/system").is_dir() else ("detached",)
)
LIMITS: Final = Limits(memory_mib=64, cpus=2)
DIES_BESIDE = """
import asyncio, os, signal, sys
from pathlib import Path
from aetherscale.actors.compute.qemu import supervision
from aetherscale.processes import launch
from aetherscale.actors.compute.qemu.supervision import Limits
async def main():
    supervisor = await supervision.choose(sys.argv[1])
    around = supervisor.around(sys.argv[2], 1, Limits(64, 2))
    errors = os.open(sys.argv[3] + "/errors", os.O_WRONLY | os.O_CREAT)
    command = ["sh", "-c", "echo ready > here; exec sleep 600"]
    pid = launch.spawn(command, launch.Jail(None, drops_bounds=False), Path(sys.argv[3]), errors, [], around=around,
                       environment=supervisor.environment)
    print(pid, flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.fixture(params=SUPERVISORS)
async def supervisor(request: pytest.FixtureRequest) -> AsyncIterator[Supervisor]:
    yield await supervision.choose(request.param)
    if request.param == "systemd":
        await asked_until(no_units)


class Spawned:
    """A command under a supervisor."""

    def __init__(self, supervisor: Supervisor, directory: Path, *command: str, inherited: tuple[int, ...] = ()) -> None:
        self._errors = directory / "errors"
        with self._errors.open("wb") as errors:
            self.pid = launch.spawn(
                command,
                launch.Jail(None, drops_bounds=False),
                directory,
                errors.fileno(),
                inherited,
                around=supervisor.around(VM, 1, LIMITS),
                environment=supervisor.environment,
            )
        self._pidfd = os.pidfd_open(self.pid)

    async def ended(self) -> tuple[int, int]:
        """How it ended (CLD_EXITED, CLD_KILLED, …) and with what, as the parent learns it."""
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pidfd, gone.set)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await gone.wait()
        finally:
            loop.remove_reader(self._pidfd)
        return self._reap()

    def _reap(self) -> tuple[int, int]:
        status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        assert status is not None
        return status.si_code, status.si_status

    def said(self) -> str:
        return self._errors.read_text()


async def test_a_command_keeps_its_pid_its_place_its_files_and_its_parent(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    spawned = Spawned(
        supervisor, tmp_path, "sh", "-c", f"echo $$ $(pwd) > /proc/self/fd/{writing}; exit 7", inherited=(writing,)
    )
    os.close(writing)
    assert await spawned.ended() == (os.CLD_EXITED, 7)
    with os.fdopen(reading) as told:
        assert told.read() == f"{spawned.pid} {tmp_path}\n"
    assert spawned.said() == ""


async def test_nothing_of_the_nodes_rights_or_environment_is_passed_on(supervisor: Supervisor, tmp_path: Path) -> None:
    os.environ["AETHERSCALE_SECRET"] = "s3cret"
    try:
        spawned = Spawned(supervisor, tmp_path, "sh", "-c", "cat /proc/self/status; env; ls -l /proc/self/fd")
        assert await spawned.ended() == (os.CLD_EXITED, 0)
    finally:
        del os.environ["AETHERSCALE_SECRET"]
    said = spawned.said()
    assert "NoNewPrivs:\t1" in said
    assert "CapAmb:\t0000000000000000" in said
    assert "CapInh:\t0000000000000000" in said
    assert "s3cret" not in said
    assert "socket:" not in said


async def test_its_end_by_a_signal_is_told_and_nobody_is_blamed_for_it(supervisor: Supervisor, tmp_path: Path) -> None:
    spawned = Spawned(supervisor, tmp_path, "sh", "-c", "kill -9 $$")
    assert await spawned.ended() == (os.CLD_KILLED, signal.SIGKILL)
    assert supervisor.why_killed() == ""


async def test_two_of_one_name_do_not_disturb_each_other(supervisor: Supervisor, tmp_path: Path) -> None:
    first = Spawned(supervisor, tmp_path, "sh", "-c", "exec sleep 600")
    second = Spawned(supervisor, tmp_path, "true")
    assert await second.ended() == (os.CLD_EXITED, 0)
    os.kill(first.pid, signal.SIGKILL)
    assert await first.ended() == (os.CLD_KILLED, signal.SIGKILL)


async def test_what_cannot_be_started_says_so(supervisor: Supervisor, tmp_path: Path) -> None:
    spawned = Spawned(supervisor, tmp_path, "no-such-program")
    how, status = await spawned.ended()
    assert (how, status != 0) == (os.CLD_EXITED, True)
    assert "no-such-program" in spawned.said()


async def test_it_outlives_its_parents_sigkill(
    supervisor: Supervisor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    wanted = request.node.callspec.params["supervisor"]
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DIES_BESIDE, wanted, VM, str(tmp_path)), stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    pidfd = os.pidfd_open(pid)
    try:
        await asked_until(lambda: exists(tmp_path / "here"))
        await parent.communicate(b"x")
        assert parent.returncode == -signal.SIGKILL
        signal.pidfd_send_signal(pidfd, 0)
        assert Path(f"/proc/{pid}/cwd").readlink() == tmp_path
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


async def exists(path: Path) -> bool:
    return path.exists()
