"""Start a process in its jail: no privilege left before its first instruction, nothing inherited but what is meant.

The exec chain is `prlimit` → `setpriv` → the program, both of util-linux, 2.5 ms together: a jail made by `preexec_fn`
would run Python between fork and exec of a process with threads, and QEMU's own `-runas` dies under its own `-sandbox`.

Which user it becomes, and how, is said in `users.py`. Where it stays uid 0, of whatever user namespace, an empty
bounding set keeps exec from giving it every capability back; without the right to empty that, `uncapable.py` does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aetherscale.kernel.fault import Fault
from aetherscale.processes import users

WITHOUT_MORE: Final = "--no-install-recommends"
"""The options of apt to install QEMU alone, which is a tenth of what it brings otherwise: no desktop."""
_PACKAGES: Final = {
    **dict.fromkeys(("prlimit", "setpriv", "unshare"), "util-linux"),
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "mount": "mount",
    "sh": "dash",
}
"""The Debian packages of programs; any other one is QEMU's."""
NOTHING: Final[Mapping[str, str]] = {}
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Jail:
    """The rights that a process keeps."""

    uid: int | None
    """Its uid and gid; None for those of the node."""
    group: int | None = None
    """Its only supplementary group: that of /dev/kvm where KVM is used."""
    file_limit_bytes: int | None = None
    """The largest file that it may write: no console log outgrows it while the node is away."""
    mapper: Path | None = None
    """Gives a user namespace its uid, where this process may not switch to it."""
    drops_bounds: bool = True
    """Whether the bounding set goes: only CAP_SETPCAP lets it."""
    gives_up: bool = False
    """Whether each capability is given up beforehand: root that keeps its bounding set would have them again."""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command, preceded by the programs that take everything away and then become it."""
        limits = ["--core=0"]
        if self.file_limit_bytes is not None:
            limits.append(f"--fsize={self.file_limit_bytes}")
        drop = ["--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
        if self.drops_bounds:
            drop = ["--bounding-set=-all", *drop]
        if self.uid is not None:
            groups = "--clear-groups" if self.group is None else f"--groups={self.group}"
            drop = [f"--reuid={self.uid}", f"--regid={self.uid}", groups, *drop]
        before = [program("prlimit"), *limits, "--", *self._mapped(), program("setpriv"), *drop, "--"]
        return [*before, *(_script("uncapable.py") if self.gives_up else ()), *command]

    def _mapped(self) -> list[str]:
        """The words before `setpriv`, where the uid comes from a user namespace of its own."""
        if self.mapper is None:
            return []
        unshare = [program("unshare"), "--user", "--keep-caps", "--"]
        return [*unshare, *_script("mapped.py"), str(self.mapper), str(self.uid)]


def jail_of(owner_id: str, group: int | None = None, file_limit_bytes: int | None = None) -> Jail:
    """The jail of a process that belongs to a VM or a network, as this process can make it."""
    way = users.way()
    drops_bounds = way == "map" or users.has_capability(users.CAP_SETPCAP)
    return Jail(
        uid=None if way == "none" else users.derived_uid(owner_id),
        group=group,
        file_limit_bytes=file_limit_bytes,
        mapper=users.MAPPER if way == "map" else None,
        drops_bounds=drops_bounds,
        gives_up=way == "none" and os.geteuid() == 0 and not drops_bounds,
    )


def require_isolation(owner_id: str, what: str, *, allow_unisolated: bool) -> None:
    """Raises `Fault` where a process that guests can attack, `what`, would be root's or the node's own user's.

    `allow_unisolated` is the setting that allows it all the same.
    """
    whose = users.would_be(owner_id)
    if whose == "own" or allow_unisolated:
        return
    runs_as = "root" if whose == "root" else f"the node's own user, {users.name_of_this_user()}"
    raise Fault(
        f"{what} would run as {runs_as}: a guest that breaks out of it would have the node's log, its credentials "
        "and the disks of all VMs",
        remedy="if you trust every guest, start the node with: aetherscale serve --allow-unisolated; "
        "for a user of its own for each VM: sudo aetherscale host setup",
        retryable=False,
    )


def _script(name: str) -> list[str]:
    """The words that run a program of ours, which becomes the command after it."""
    return [sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name(name))]


def program(name: str) -> str:
    """The path of a program. Raises `Fault` that says which package has it."""
    path = shutil.which(name)
    if path is None:
        package = _PACKAGES.get(name, "qemu-system-x86")
        raise Fault(f"{name} is not installed", remedy=f"apt-get install {WITHOUT_MORE} {package}", retryable=False)
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
    stdin: int = subprocess.DEVNULL,
) -> int:
    """Start the command in its directory and in a session of its own; returns its pid.

    `around` are words that come before those of the jail and then become them, `environment` what they need.

    stdin is /dev/null unless it is given, stdout and stderr are `errors`; of all other descriptors only `inherited` are
    passed on, under the same numbers. The caller waits for the process, through its pidfd. Raises `OSError`, `Fault`.
    """
    process = subprocess.Popen(
        [*around, *jail.wrap(command)],
        stdin=stdin,
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
    # From here on the pidfd is what knows whether it lives; Popen would complain of a child that was not waited for.
    process.returncode = 0
    return process.pid
