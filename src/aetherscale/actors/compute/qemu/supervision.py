"""The surroundings of a VM's process besides its jail, so that it outlives its node and has limits:
docs/supervision.md.

A supervisor puts words in front of a command and environment around it. The command keeps its pid, its descriptors and
its parent, and ends as it would without.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import re
import secrets
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from aetherscale.kernel.fault import Fault
from aetherscale.runtime import memory
from aetherscale.settings import Supervision

log = logging.getLogger(__name__)

SLICE: Final = "aetherscale.slice"
PROBE_LIMIT_S: Final = 5.0
"""How long systemd may take to make a scope around `true`."""
QEMU_MIB: Final = 512
"""The memory that QEMU may take beside the guest's: four times what it was seen to take."""
QEMU_CPUS: Final = 1
TASKS: Final = 192
"""QEMU's pool for disk I/O has up to 64 threads, each virtual CPU one."""
SHARE: Final = 50
"""Of CPU and I/O where they are scarce; everything else on a host has 100."""

_SYSTEMD: Final = Path("/run/systemd/system")
_LINGERING: Final = Path("/var/lib/systemd/linger")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OOM_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class Limits(Struct, frozen=True):
    """The limits of one VM on its host."""

    memory_mib: int
    """The guest's."""
    cpus: int

    def properties(self) -> Mapping[str, str]:
        """As systemd has them: systemd.resource-control(5)."""
        return {
            "MemoryMax": f"{self.memory_mib + QEMU_MIB}M",
            "MemorySwapMax": "0",
            "CPUQuota": f"{(self.cpus + QEMU_CPUS) * 100}%",
            "CPUWeight": str(SHARE),
            "IOWeight": str(SHARE),
            "TasksMax": str(TASKS + self.cpus),
        }


class Supervisor(Protocol):
    """Where VMs' processes live."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment that the words in front of a command need."""
        ...

    def around(self, vm_id: str, run: int, limits: Limits) -> Sequence[str]:
        """The words in front of the command of a run."""
        ...

    def memory_groups(self) -> Sequence[Path]:
        """The control groups whose limits of memory hold for a VM beside its own. Raises `OSError`."""
        ...

    def why_killed(self) -> str:
        """Why a process was killed, asked once for each that has just been; "" where it is not known."""
        ...


class Detached:
    """Nothing around it."""

    name: Final = "detached"
    environment: Final[Mapping[str, str]] = {}

    def around(self, vm_id: str, run: int, limits: Limits) -> Sequence[str]:
        """No words."""
        return ()

    def memory_groups(self) -> Sequence[Path]:
        """Those of the node, whose children VMs are."""
        return memory.groups_of()

    def why_killed(self) -> str:
        """It is not known."""
        return ""


class SystemdScopes:
    """A transient scope of systemd around each run, of the system's manager or of the user's."""

    def __init__(self, program: str, *, of_user: bool, runtime_dir: str = "", cgroups: Path = _CGROUPS) -> None:
        self._program, self._of_user = program, of_user
        self.environment: Mapping[str, str] = {"XDG_RUNTIME_DIR": runtime_dir} if of_user else {}
        self._cgroups = cgroups
        self._slice: Path | None = None
        self._counted = 0

    @property
    def name(self) -> str:
        """For people."""
        return "systemd, the user's manager" if self._of_user else "systemd"

    def around(self, vm_id: str, run: int, limits: Limits) -> Sequence[str]:
        """`systemd-run`, which becomes the command once the scope is there."""
        # A scope of before may be about to go: no two have one name.
        unit = f"aetherscale-vm-{vm_id}-{run}-{secrets.token_hex(4)}.scope"
        properties = [f"--property={name}={value}" for name, value in limits.properties().items()]
        return self.scope(unit, *properties)

    def scope(self, unit: str, *more: str) -> list[str]:
        """The words of a scope of this name."""
        manager = ["--user"] if self._of_user else []
        return [self._program, *manager, "--scope", "--quiet", "--collect", f"--slice={SLICE}", f"--unit={unit}", *more]

    def count_in(self, cgroup: str) -> None:
        """The scopes' slice is above this control group, as /proc has it: remember where, and what is counted there."""
        if not cgroup:
            return
        self._slice = self._cgroups / Path(cgroup).parent.relative_to("/")
        self._counted = self._count()

    def memory_groups(self) -> Sequence[Path]:
        """The slice of the scopes, and all above it."""
        return memory.groups_above(self._slice, self._cgroups) if self._slice is not None else ()

    def why_killed(self) -> str:
        """That its memory was too much, where the count of the slice has grown."""
        count = self._count()
        if count < self._counted:
            # A slice in which nothing was left has been made anew.
            self._counted = 0
        if count == self._counted:
            return ""
        self._counted += 1
        return "the kernel killed it: it was out of the memory that it may have"

    def _count(self) -> int:
        if self._slice is None:
            return 0
        try:
            found = _OOM_KILLS.search((self._slice / "memory.events").read_text())
        except OSError:
            # Without a memory controller nothing is counted.
            return 0
        return int(found[1]) if found else 0


async def choose(wanted: Supervision) -> Supervisor:
    """The supervisor for this host. Raises `ValueError` where systemd is wanted and does not do it."""
    if wanted == "detached":
        return Detached()
    try:
        return await systemd_scopes()
    except Fault as fault:
        if wanted == "systemd":
            raise ValueError(f"--supervisor systemd: {fault.reason}; {fault.remedy}") from fault
        log.info("virtual machines are detached processes, without limits: %s", fault.reason)
        return Detached()


async def systemd_scopes() -> SystemdScopes:
    """Scopes, tried out. Raises `Fault` that says why they cannot be made."""
    hint = "with --supervisor auto, VMs are processes without limits; they outlive the node all the same"
    if not _SYSTEMD.is_dir():
        raise Fault("this host is not run by systemd", remedy=hint, retryable=False)
    program = shutil.which("systemd-run")
    if program is None:
        raise Fault("systemd-run is not installed", remedy="apt install systemd", retryable=False)
    uid = os.geteuid()
    if uid != 0 and not (_LINGERING / _name_of(uid)).exists():
        raise Fault(
            "this user's systemd ends with the user's last session, and virtual machines would with it",
            remedy=f"loginctl enable-linger; {hint}",
            retryable=False,
        )
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    scopes = SystemdScopes(program, of_user=uid != 0, runtime_dir=runtime_dir)
    process = await asyncio.create_subprocess_exec(
        *scopes.scope(f"aetherscale-probe-{secrets.token_hex(4)}.scope"), "cat", "/proc/self/cgroup",
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env={**os.environ, **scopes.environment},
    )  # fmt: skip
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            said, complaint = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Fault(f"systemd made no scope within {PROBE_LIMIT_S:g} s", remedy=hint) from None
    if process.returncode != 0:
        why = complaint.decode(errors="replace").strip().partition("\n")[0]
        hint = "aetherscale host setup, which lets a user's VMs have units" if uid != 0 else hint
        raise Fault(f"systemd makes no scope: {why}", remedy=hint)
    scopes.count_in(cgroup_of(said.decode()))
    return scopes


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def cgroup_of(proc: str) -> str:
    """The control group of version 2 in the text of /proc/PID/cgroup; "" where there is none."""
    found = re.search(r"^0::(/.+)$", proc, re.MULTILINE)
    return found[1] if found else ""
