"""The bridge of a host between its setup and its confirmation: what is recorded, who may act, and who takes it back.

What is recorded of a trial is in /run, so a reboot forgets it, and the host comes up as it was before. One process at a
time acts. It holds a lock, which ends with it, and its pid is in the file.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from aetherscale.actors.network.netlink.uplink import Uplink
from aetherscale.setup.hostwork import write

PERIOD_S: Final = 60.0
"""How long the confirmation may take; without it all is taken back."""
BUSY_S: Final = 10.0
"""How long a process that acts may hold the lock once that time is over; then it is killed."""
POLL_S: Final = 0.1
STATE_VERSION: Final = 1

State = Literal["taking", "taken", "leaving"]
"""The bridge takes the device's place; it has it; the device takes it back."""


class Places(Struct, frozen=True):
    """Where the files are."""

    run: Path = Path("/run/aetherscale-bridge")
    kept: Path = Path("/etc/aetherscale/bridge.json")
    """What a boot makes the bridge from."""
    units: Path = Path("/etc/systemd/system")

    @property
    def trial(self) -> Path:
        """What is recorded of a trial."""
        return self.run / "trial.json"

    @property
    def lock(self) -> Path:
        """The lock, with the pid of the process that holds it."""
        return self.run / "lock"


class Trial(Struct, frozen=True):
    """A bridge that is not confirmed, or that is about to be undone."""

    uplink: Uplink
    state: State
    deadline_ns: int
    """By the clock of the boot (CLOCK_BOOTTIME)."""
    namespace: int
    """The network namespace that it is in, by its inode."""
    version: int = STATE_VERSION

    @property
    def left_s(self) -> float:
        """How long until it is taken back; negative where that is due."""
        return (self.deadline_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9


def begun(uplink: Uplink, period_s: float) -> Trial:
    """A trial that begins now, in the network namespace of this process."""
    deadline_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(period_s * 1e9)
    return Trial(uplink, "taking", deadline_ns, namespace())


def namespace() -> int:
    """The network namespace of this thread."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def read_trial(places: Places) -> Trial | None:
    """The trial that is on; None for none. Raises `ValueError` where what is recorded cannot be read."""
    try:
        return msgspec.json.decode(places.trial.read_bytes(), type=Trial)
    except FileNotFoundError:
        return None


def write_trial(places: Places, trial: Trial) -> None:
    """Record a trial. Raises `OSError`."""
    places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(places.trial, msgspec.json.encode(trial).decode(), 0o600)


def read_kept(places: Places) -> Uplink | None:
    """What a boot makes the bridge from; None where nothing is confirmed. Raises `ValueError`."""
    try:
        return msgspec.json.decode(places.kept.read_bytes(), type=Uplink)
    except FileNotFoundError:
        return None


@contextmanager
def acting(places: Places, *, wait_s: float | None = None) -> Iterator[None]:
    """Be the one process that acts. Waits for another; with `wait_s` one that takes longer is killed.

    Where no trial is recorded at the end, nothing is left in /run.
    """
    with ExitStack() as undo:
        descriptor = _held(places, wait_s)
        undo.callback(os.close, descriptor)
        undo.callback(_forget_lock, places)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {_begun(os.getpid())}".encode(), 0)
        yield


def _held(places: Places, wait_s: float | None) -> int:
    """A descriptor of the lock, which is held. One that its holder has removed meanwhile is a lock no more."""
    while True:
        with suppress(FileExistsError):
            places.run.mkdir(mode=0o700)
        try:
            descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # its holder has removed the directory in between
        with ExitStack() as undo:
            undo.callback(os.close, descriptor)
            if wait_s is None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            else:
                _lock_within(descriptor, wait_s)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), places.lock.stat()):
                    undo.pop_all()
                    return descriptor


def _forget_lock(places: Places) -> None:
    """Remove the lock, which is held, where no trial needs it any more."""
    if not places.trial.exists():
        places.lock.unlink(missing_ok=True)
        with suppress(OSError):  # another process has made the next lock
            places.run.rmdir()


def is_acting(places: Places) -> bool:
    """Whether a process holds the lock."""
    try:
        descriptor = os.open(places.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_within(descriptor: int, wait_s: float) -> None:
    until_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until_s:
                _kill_holder(descriptor)
            time.sleep(POLL_S)
        else:
            return


def _kill_holder(descriptor: int) -> None:
    """Kill the process that holds the lock for too long: a stopped one would go on later, with what is over."""
    with suppress(ValueError, OSError):
        pid, began = map(int, os.pread(descriptor, 64, 0).split())
        pidfd = os.pidfd_open(pid)
        try:
            if _begun(pid) == began:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _begun(pid: int) -> int:
    """When a process was started, in ticks since the boot: with the pid it names the process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
