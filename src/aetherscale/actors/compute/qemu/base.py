"""A VM's base: the file of its image under a second name, or a copy where the file system gives it none.

A hard link costs nothing and keeps the VM whole when the image is deleted. There is none across file systems, on some
that are mounted from elsewhere, to another user's file, and beyond the most links that a file may have. A copy shares
its data with the image where the file system can do that, and keeps its holes.
"""

from __future__ import annotations

import errno
import os
import threading
from functools import partial
from pathlib import Path
from typing import Final

from aetherscale import filecopy, shortage
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import until_stopped

NO_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP})
"""The errors of link(2) where a file cannot have a second name there; a copy can be made all the same."""


class _Stopped(Exception):
    """The copy is not waited for any more."""


async def ensure(image: Path, base: Path) -> None:
    """Make `base` the image, whatever is there. Raises `Fault`, `OSError`.

    Cancelled, it leaves nothing behind but what the next call begins with taking away.
    """
    if not _linked(image, base):
        await _copy(image, base)


def _linked(image: Path, base: Path) -> bool:
    base.unlink(missing_ok=True)
    try:
        os.link(image, base)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return False
    return True


def shares_files(images: Path, vms: Path) -> bool:
    """Whether both directories are on one file system, as far as that can be seen beforehand."""
    return images.stat().st_dev == vms.stat().st_dev


async def _copy(image: Path, base: Path) -> None:
    stopped = threading.Event()
    try:
        await until_stopped(partial(_copied, image, base, stopped), stopped.set)
    except RuntimeError as error:
        raise Fault(f"could not copy the image {image}: {error}", remedy=shortage.MORE_THREADS) from error


def _copied(image: Path, base: Path, stopped: threading.Event) -> None:
    def advance(done_bytes: int, of_bytes: int) -> None:
        if stopped.is_set():
            raise _Stopped

    fresh = base.with_name(f".{base.name}")
    fresh.unlink(missing_ok=True)
    original = filecopy.open_file(image)
    try:
        target = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            filecopy.copy(original, target, advance)
            # A name that is there after a power cut stands for all of it.
            os.fsync(target)
        finally:
            os.close(target)
        fresh.rename(base)
    except Fault as refused:
        raise Fault(
            f"could not copy the image {image}: {refused.reason}", remedy=refused.remedy, retryable=False
        ) from refused
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size_mib = os.fstat(original).st_blocks // 2048
        raise Fault(
            f"no room for a copy of the image in {base.parent.parent}: it takes {size_mib} MiB, since {image} is on "
            "another file system",
            remedy="make room there (df -h); or keep images/ and vms/ on one file system, where nothing is copied",
            retryable=False,
        ) from error
    finally:
        os.close(original)
        fresh.unlink(missing_ok=True)
