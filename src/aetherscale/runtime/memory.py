"""How much memory a process may still take: the least of what the host has and what its control groups leave it.

MemAvailable is the host's. In a container, or a unit with a limit, the kernel kills a process that takes more than the
control group may have, or one of those above it. Knows version 1 and 2 of control groups (cgroups(7)), both at once as
well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_MIB: Final = 1024 * 1024
_LIMITS: Final = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Version 2 has the first two, of which the second holds back instead of killing; version 1 the third."""
_USES: Final = ("memory.current", "memory.usage_in_bytes")
_CACHES: Final = (("inactive_file", "active_file"), ("total_inactive_file", "total_active_file"))
"""In `memory.stat`: the kernel takes these back where memory is short. Version 1 has the sums under other names."""


class Room(NamedTuple):
    """Memory in MiB: what there is in all, and what of it can still be had."""

    total_mib: int
    available_mib: int
    where: str
    """For people: whose memory the available is."""


def room(groups: Sequence[Path], proc: Path = _PROC) -> Room:
    """The memory that a process in these control groups may still take. Raises `OSError` where there is no /proc."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    total_mib, available_mib = (int(fields[name].split()[0]) // 1024 for name in ("MemTotal", "MemAvailable"))
    least = Room(total_mib, available_mib, "on this host")
    for group in groups:
        for limit_bytes in _numbers(group, _LIMITS):
            used_bytes = max(0, next(_numbers(group, _USES), 0) - _reclaimable_bytes(group))
            left_mib = max(0, limit_bytes - used_bytes) // _MIB
            where = f"in the control group {group}, which may have {limit_bytes // _MIB} MiB"
            least = Room(
                min(least.total_mib, limit_bytes // _MIB),
                min(least.available_mib, left_mib),
                where if left_mib < least.available_mib else least.where,
            )
    return least


def groups_of(process: str = "self", proc: Path = _PROC) -> Sequence[Path]:
    """The control groups with memory that a process is in, as far up as they can be seen from here."""
    paths: dict[str, str] = {}
    for line in (proc / process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = path
    found: list[Path] = []
    for kind, root, mounted in _mounts(proc / process / "mountinfo"):
        if kind in paths:
            found += groups_above(_inside(mounted, root, paths[kind]), mounted)
    return found


def groups_above(group: Path, top: Path) -> Sequence[Path]:
    """A control group and all above it, up to where they are mounted."""
    return [each for each in (group, *group.parents) if each.is_relative_to(top)]


def _mounts(mountinfo: Path) -> Iterator[tuple[str, str, Path]]:
    """(version, which group is at the top, where) of each mount of control groups that has memory: proc(5)."""
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            fields = before.split()
            yield kind, fields[3], Path(fields[4])


def _inside(mounted: Path, root: str, path: str) -> Path:
    """Where a group is in the file system. One that is outside of what is mounted is taken for the top of that."""
    if ".." in Path(path).parts or not Path(path).is_relative_to(root):
        return mounted
    return mounted / Path(path).relative_to(root)


def _reclaimable_bytes(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    counts = dict(line.split()[:2] for line in lines if line.count(" ") == 1)
    return max(sum(int(counts.get(name, 0)) for name in names) for names in _CACHES)


def _numbers(group: Path, names: Sequence[str]) -> Iterator[int]:
    """The numbers in the files of a group; a group may have gone, and `max` is not a number."""
    for name in names:
        try:
            text = (group / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            yield int(text)
