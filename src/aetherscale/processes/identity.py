"""Which process is which: boot id, pid and start ticks name one for as long as the host is up; a pid alone never does.

A process is ours where its start ticks are those that are on record, it works in the directory that it was started in
(unless it leaves it), and its command line has the word that it was given. Only then is it watched, or ended, and only
through its pidfd.

Where a process works is not always for us to see: root in a container without CAP_SYS_PTRACE may not look at processes
of other users. What is on record, or who holds a socket in a directory that is ours alone, says as much.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_START_TICKS_FIELD: Final = 22


def boot_id() -> str:
    """The id of the host's present boot (proc(5), random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), field 22 of stat); None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(_fields(stat)[_START_TICKS_FIELD - 3])


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or one that has ended and was not waited for yet (proc(5), field 3 of stat)."""
    try:
        return _fields(Path(f"/proc/{pid}/stat").read_bytes())[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def age_s(ticks: int) -> int:
    """For how many seconds there has been a process that started then, also while the host was suspended."""
    return max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")))


def open_verified(pid: int, ticks: int, directory: Path | None, word: str) -> int | None:
    """A pidfd of the process, where it is alive and it is the one; the caller closes it. None otherwise.

    `ticks` are from what the node has written, or of a process that is known to be in the directory, which is None for
    one that leaves the directory that it is started in; `word` is one of its arguments. The pidfd is opened before
    anything is looked at, so that what was checked is what it stands for.
    """
    if pid <= 1:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    if start_ticks(pid) == ticks and (directory is None or _may_work_in(pid, directory)) and _has(pid, word):
        return pidfd
    os.close(pidfd)
    return None


def processes_below(root: Path, word_of: Callable[[str], str]) -> list[tuple[str, int]]:
    """The directory's name and the pid of every process that works in a directory of `root`, a deleted one too.

    `word_of` says, from that name, which argument the process has to have.
    """
    prefix = f"{root.resolve()}/"
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            place = os.readlink(f"/proc/{name}/cwd")
        except OSError:
            # It has ended, or belongs to another user.
            continue
        if place.startswith(prefix):
            directory = place.removeprefix(prefix).removesuffix(" (deleted)")
            if _has(int(name), word_of(directory)):
                found.append((directory, int(name)))
    return found


def arguments_of(pid: int) -> list[str]:
    """The words of its command line; none where there is no such process, or where it has ended."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in line.removesuffix(b"\0").split(b"\0")] if line else []


def processes_with(form: re.Pattern[str]) -> list[tuple[re.Match[str], int]]:
    """The match and the pid of every process that has a word in its command line that is of this form."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            for word in arguments_of(int(name)):
                if match := form.fullmatch(word):
                    found.append((match, int(name)))
                    break
    return found


def _fields(stat: bytes) -> list[bytes]:
    """The fields from the third on."""
    # The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
    return stat[stat.rindex(b")") + 2 :].split()


def _may_work_in(pid: int, directory: Path) -> bool:
    """Whether it works there, as far as this process may see."""
    try:
        if directory.exists():
            return os.path.samestat(os.stat(f"/proc/{pid}/cwd"), directory.stat())
        return os.readlink(f"/proc/{pid}/cwd") == f"{directory.resolve()} (deleted)"
    except PermissionError:
        return True
    except OSError:
        return False


def _has(pid: int, word: str) -> bool:
    return word in arguments_of(pid)
