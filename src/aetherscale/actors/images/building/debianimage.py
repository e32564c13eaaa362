"""The recipes `debian-12` and `debian-13`: a whole Debian, made of its packages on the spot; see docs/images.md.

    <cache>/debian/disks/<key>/disk.qcow2    what was made, as small as it can be; the two that were used last
    <cache>/debian/work/                     what is being made; whatever a killed build has left is removed by the next
    <cache>/debian/packages/, lists/, …      the packages of GRUB and the tools: see `Archive`

An image is a copy of such a disk, as large as it is asked for: a guest grows into its disk at its first boot.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aetherscale.actors.images.building import debiandisk, debiantree, gptdisk, guestfiles, mirrors, privilege
from aetherscale.actors.images.building.alone import alone
from aetherscale.actors.images.building.built import BuiltImage
from aetherscale.actors.images.building.debian import Archive
from aetherscale.actors.images.building.debiantree import Plan
from aetherscale.actors.images.building.programs import Say, run
from aetherscale.actors.images.files.header import inspect
from aetherscale.actors.images.model.effects import BuildImage
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import to_the_end

CODENAMES: Final[Mapping[str, str]] = {"debian-12": "bookworm", "debian-13": "trixie"}
MOST_KEPT: Final = 2
"""So many disks are kept in the cache."""
KEPT_S: Final = 24 * 3600.0
"""A disk that is older is made anew, for the updates of its packages."""
GIB: Final = 1 << 30
ROOM_BYTES: Final = GIB // 2
"""An image has at least so much more than its files need, unless its size is given."""


async def build(
    target: Path,
    cache_dir: Path,
    say: Say,
    effect: BuildImage,
    *,
    now_s: float,
    archive_timeout_s: int = debiantree.ARCHIVE_TIMEOUT_S,
) -> BuiltImage:
    """Make the image at `target` (0600, synced); nothing is there unless it is whole. `say` is called with each phase.

    Raises Fault, and OSError where there is no room.
    """
    place = cache_dir / "debian"
    async with alone(place, say):
        codename = CODENAMES[effect.recipe]
        plan = Plan(codename, await mirrors.sources(codename, effect.mirror), tuple(sorted(effect.packages)))
        kept = place / "disks" / key_of(plan)
        if not is_fresh(kept, now_s):
            await privilege.require()
            work = place / "work"
            await debiantree.remove(work)
            try:
                await _make(plan, place, kept, say, archive_timeout_s)
            finally:
                await debiantree.remove(work)
        await to_the_end(keep_the_newest, kept)
        say("copying the disk")
        return await copy(kept / "disk.qcow2", target, effect)


def key_of(plan: Plan) -> str:
    """The inputs of a disk: what is installed, and the code and files that make a disk of it."""
    digest = hashlib.sha256("\0".join((plan.codename, *plan.sources, "", *plan.included)).encode())
    for module in (debiandisk, debiantree, gptdisk, guestfiles):
        digest.update(Path(str(module.__file__)).read_bytes())
    for path, data in sorted(guestfiles.files(plan.sources, "").items()):
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:32]


def is_fresh(kept: Path, now_s: float) -> bool:
    """Whether a kept disk is there, and not too old."""
    try:
        return 0 <= now_s - (kept / "disk.qcow2").stat().st_mtime < KEPT_S
    except FileNotFoundError:
        return False


async def _make(plan: Plan, place: Path, kept: Path, say: Say, archive_timeout_s: int) -> None:
    work = place / "work"
    await to_the_end(work.mkdir)
    root_uuid = gptdisk.identity(kept.name, "root")
    archive = Archive(place)
    await debiandisk.require_tools(archive, say)
    tree = await debiantree.make(plan, work, root_uuid, say, archive_timeout_s=archive_timeout_s)
    programs = await debiandisk.tools(archive, work / "programs", say)
    disk = await debiandisk.make(tree, programs, work, kept.name, root_uuid, say)
    await to_the_end(put, disk, kept)


def put(disk: Path, kept: Path) -> None:
    """Sync a disk that was made, and only then keep it: the next build takes it as it is, also after a power cut."""
    with disk.open("rb") as file:
        os.fsync(file.fileno())
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    disk.rename(kept / disk.name)


def keep_the_newest(kept: Path) -> None:
    """Note the use of a disk, and remove those of which the last use is longest ago."""
    os.utime(kept)
    others = sorted(kept.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[MOST_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


async def copy(disk: Path, target: Path, effect: BuildImage) -> BuiltImage:
    """Copy the disk to `target`, as large as it is to be."""
    needed_bytes = (await to_the_end(inspect, disk)).virtual_size_bytes
    size_gib = effect.size_gib or -(-(needed_bytes + ROOM_BYTES) // GIB)
    if size_gib * GIB < needed_bytes:
        raise Fault(
            f"the image needs a disk of {-(-needed_bytes // GIB)} GiB, and {size_gib} GiB were asked for",
            "ask for a larger one, or for fewer packages",
            retryable=False,
        )
    fresh = target.with_name(f"{target.name}.new")
    try:
        await run("cp", "--reflink=auto", str(disk), str(fresh))
        await run("qemu-img", "resize", "-q", "-f", "qcow2", str(fresh), f"{size_gib}G")
        sha256, size_bytes = await to_the_end(_settle, fresh, target)
    except BaseException:
        await to_the_end(lambda: fresh.unlink(missing_ok=True))
        raise
    return BuiltImage(target, "qcow2", sha256, size_bytes, size_gib * GIB)


def _settle(fresh: Path, target: Path) -> tuple[str, int]:
    """Sync the file and move it to its place; its SHA-256 in hex and its size in bytes."""
    with fresh.open("rb") as file:
        os.fchmod(file.fileno(), 0o600)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    fresh.replace(target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return sha256, target.stat().st_size
