"""The user that a process of ours runs as: one that no other process has, wherever this node can give it one.

The uid is derived from the id of the VM or the network that it works for, in 0x70000000-0x7fffffff less its end: a
range that neither systemd nor the distributions hand out. Two VMs share one with a chance of 2⁻²⁸; they would still
have nothing open in common.

There are two ways to it. Root switches to the uid, where it has the capabilities for that and its user namespace has
the range, which those of rootless containers have not. A node that `host setup` has made a service asks the *mapper*
(`uidmapper.py`): QEMU starts in a user namespace of its own, which the mapper gives that one uid and nothing else.
Where there is no way QEMU would run as root or as the node's own user, and whoever breaks out of it would have the log,
the credentials and every disk: then a VM starts only where the setting `allow-unisolated` says so.
"""

from __future__ import annotations

import hashlib
import os
import pwd
from pathlib import Path
from typing import Final, Literal

UID_BASE: Final = 0x7000_0000
UID_COUNT: Final = 0x0FFE_0000
"""systemd keeps 0x7ffe0000 and up for "foreign" images."""

MAPPER: Final = Path("/run/aetherscale-uids.sock")
"""Where the mapper of a host that was set up listens: for the user of the service alone."""

CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_SYS_PTRACE: Final = 19

_PROC: Final = Path("/proc/self")

ProcessUser = Literal["own", "node", "root"]
"""Whose a process is: a user of its own, the one that the node runs as, or root."""


def uid_of(owner_id: str) -> int | None:
    """The uid of a process that belongs to a VM or a network; None where there is no way here to give it its own."""
    return None if way() == "none" else derived_uid(owner_id)


def derived_uid(owner_id: str) -> int:
    """The uid that belongs to a VM or a network."""
    return UID_BASE + int.from_bytes(hashlib.sha256(owner_id.encode()).digest()[:8], "big") % UID_COUNT


def is_a_vms(uid: int) -> bool:
    """Whether this is the uid of some VM."""
    return UID_BASE <= uid < UID_BASE + UID_COUNT


def way() -> Literal["switch", "map", "none"]:
    """How this process gives another one a uid of its own."""
    if os.geteuid() == 0:
        return "none" if missing_for_switching() else "switch"
    return "map" if os.access(MAPPER, os.W_OK) else "none"


def missing_for_switching(proc: Path = _PROC) -> str:
    """The capabilities that root lacks here to start a process as another user, and to end it; "" for none."""
    for capability, name in ((CAP_SETUID, "SETUID"), (CAP_SETGID, "SETGID"), (CAP_KILL, "KILL")):
        if not has_capability(capability, proc):
            return f"CAP_{name} is missing"
    for kind in ("uid", "gid"):
        if not _has_the_range((proc / f"{kind}_map").read_text()):
            return f"this user namespace has no {kind}s from {UID_BASE} on"
    if (proc / "setgroups").read_text().strip() != "allow":
        return "this user namespace may not change groups"
    if not has_capability(CAP_SYS_PTRACE, proc) and _hides_others(proc):
        return "CAP_SYS_PTRACE is missing, and /proc is mounted with hidepid="
    return ""


def has_capability(number: int, proc: Path = _PROC) -> bool:
    """Whether this process has a capability in its user namespace (capabilities(7), CapEff in proc(5))."""
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def would_be(owner_id: str) -> ProcessUser:
    """The user of a process that is started now."""
    if uid_of(owner_id) is not None:
        return "own"
    return "root" if os.geteuid() == 0 else "node"


def owner_of(pid: int) -> ProcessUser | None:
    """The user of this process; None where there is none, or where it may not be looked at."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    # Real, effective, saved, and that of file systems: the worst of them counts.
    uids = {int(uid) for line in status.splitlines() if line.startswith("Uid:") for uid in line.split()[1:]}
    if 0 in uids:
        return "root"
    return "own" if all(is_a_vms(uid) for uid in uids) else "node"


def name_of_this_user() -> str:
    """Whom this process runs as, for people."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _hides_others(proc: Path) -> bool:
    """Whether processes of other users cannot be seen in /proc (proc(5), hidepid)."""
    # What is mounted last is what is seen.
    for line in reversed((proc / "mountinfo").read_text().splitlines()):
        fields = line.split()
        if fields[4] != "/proc":
            continue
        options = dict(option.partition("=")[::2] for option in fields[-1].split(","))
        sees_all = "gid" in options and int(options["gid"]) in {os.getegid(), *os.getgroups()}
        return options.get("hidepid", "0") not in ("0", "off") and not sees_all
    return False


def _has_the_range(text: str) -> bool:
    """Whether a map of user_namespaces(7) has all uids of VMs, in one piece."""
    for line in text.splitlines():
        inside, _, count = (int(field) for field in line.split())
        if inside <= UID_BASE and inside + count >= UID_BASE + UID_COUNT:
            return True
    return False
