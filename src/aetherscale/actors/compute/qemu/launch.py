"""Start a process in its jail: no privilege left before QEMU's first instruction, nothing inherited but what is meant.

The exec chain is `prlimit` → `setpriv` → QEMU, both of util-linux, 2.5 ms together: a jail made by `preexec_fn` would
run Python between fork and exec of a process with threads, and QEMU's own `-runas` dies under its own `-sandbox`.

As root every VM has a uid of its own. It is derived from the VM's id, in 0x70000000-0x7fffffff less its end: a range
that neither systemd nor the distributions hand out. Two VMs share one with a chance of 2⁻²⁸; they would still have
nothing open in common. Under any other user QEMU runs as that user, all else alike.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aetherscale.actors.compute.qemu.faults import HostFault

UID_BASE: Final = 0x7000_0000
UID_COUNT: Final = 0x0FFE_0000
"""systemd keeps 0x7ffe0000 and up for "foreign" images."""

WITHOUT_MORE: Final = "--no-install-recommends"
"""How apt is told to install QEMU alone, which is a tenth of what it brings otherwise: no desktop."""
NOTHING: Final[Mapping[str, str]] = {}
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Jail:
    """What a process is left with."""

    uid: int | None
    """Its uid and gid; None for those of the node."""
    group: int | None = None
    """Its only supplementary group: that of /dev/kvm where KVM is used."""
    file_limit_bytes: int | None = None
    """The largest file that it may write: no console log outgrows it while the node is away."""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command, preceded by the programs that take everything away and then become it."""
        limits = ["--core=0"]
        if self.file_limit_bytes is not None:
            limits.append(f"--fsize={self.file_limit_bytes}")
        drop = ["--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
        if self.uid is not None:
            groups = "--clear-groups" if self.group is None else f"--groups={self.group}"
            drop = [f"--reuid={self.uid}", f"--regid={self.uid}", groups, "--bounding-set=-all", *drop]
        return [program("prlimit"), *limits, "--", program("setpriv"), *drop, "--", *command]


def uid_of(vm_id: str) -> int | None:
    """The uid that the VM's process runs as; None where this process may not switch to it."""
    return derived_uid(vm_id) if may_switch() else None


def derived_uid(vm_id: str) -> int:
    """The uid that belongs to a VM."""
    return UID_BASE + int.from_bytes(hashlib.sha256(vm_id.encode()).digest()[:8], "big") % UID_COUNT


def may_switch() -> bool:
    """Whether this process is root, and in a user namespace that has the whole range (user_namespaces(7))."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _, count = (int(field) for field in line.split())
        if inside <= UID_BASE and inside + count >= UID_BASE + UID_COUNT:
            return True
    return False


def program(name: str) -> str:
    """The path of a program. Raises `HostFault` that says which package has it."""
    path = shutil.which(name)
    if path is None:
        package = "util-linux" if name in ("prlimit", "setpriv") else "qemu-system-x86"
        raise HostFault(f"{name} is not installed", hint=f"apt-get install {WITHOUT_MORE} {package}", retryable=False)
    return os.path.realpath(path)


def spawn(
    command: Sequence[str],
    jail: Jail,
    directory: Path,
    errors: int,
    inherited: Sequence[int],
    *,
    around: Sequence[str] = (),
    environment: Mapping[str, str] = NOTHING,
) -> int:
    """Start the command in its directory and in a session of its own; returns its pid.

    `around` are words that come before those of the jail and then become them, `environment` what they need.

    stdin is /dev/null, stdout and stderr are `errors`; of all other descriptors only `inherited` are passed on, under
    the same numbers. The caller waits for the process, through its pidfd. Raises `OSError` and `HostFault`.
    """
    process = subprocess.Popen(
        [*around, *jail.wrap(command)],
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        cwd=directory,
        env={**_ENVIRONMENT, **environment},
        umask=0o077,
        start_new_session=True,
        pass_fds=tuple(inherited),
        # Python ignores SIGXFSZ, and that has to be passed on: QEMU shall see EFBIG, not die of its log's limit.
        restore_signals=False,
    )
    # From here on the pidfd is what knows whether it lives; Popen would complain of a child that nobody waited for.
    process.returncode = 0
    return process.pid
