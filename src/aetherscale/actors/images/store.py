"""The files of images below one directory: each has the name of its image, and one more by its content.

    <images>/<image-id>.<format>          a stored image, read-only; VMs have hard links to it
    <images>/content/<sha256>.<format>    the same file once more: two images of one content are one file on the disk

An image that is updated has another file from then on. A VM that was requested before finds its own by its content, for
as long as it may take to make its disk, and has a link to it after that.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from aetherscale import statedir

READ_ONLY: Final = 0o400
"""QEMU gets it as an open descriptor, whatever its uid."""
FORMATS: Final = ("qcow2", "raw")
KEPT_S: Final = 3600.0
"""How long a file that an update has taken the place of is there for VMs that were requested before."""

_CONTENT: Final = "content"
_NO_LINK: Final = frozenset({errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV})


class Store:
    """The files of the images of a node."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._content = directory / _CONTENT

    def part(self, image_id: str) -> Path:
        """Where a file grows that is to be one."""
        return self.directory / f"{image_id}.part"

    def path(self, image_id: str, image_format: str, sha256: str | None) -> Path:
        """As in `ImageFiles`."""
        if sha256 is not None and (content := self._content / f"{sha256}.{image_format}").exists():
            return content
        return self.directory / f"{image_id}.{image_format}"

    def stored(self, image_id: str) -> Path | None:
        """The file of an image, if it has one."""
        return next((path for each in FORMATS if (path := self.directory / f"{image_id}.{each}").exists()), None)

    def put(self, part: Path, image_id: str, image_format: str, sha256: str) -> None:
        """Have a part file, which is whole and on the disk, as that of an image, in one step. Raises OSError."""
        part.chmod(READ_ONLY)
        fresh = self._one_of(part, image_format, sha256)
        place = self.directory / f"{image_id}.{image_format}"
        fresh.rename(place)
        for other in FORMATS:
            if other != image_format:
                (self.directory / f"{image_id}.{other}").unlink(missing_ok=True)
        # Of two names of one file rename(2) removes none, and a file that was here already is known by the other one.
        part.unlink(missing_ok=True)
        if fresh != part:
            fresh.unlink(missing_ok=True)
        _sync(self.directory)

    def tidy(self, image_id: str) -> None:
        """Remove what is left of the way to an image that is stored. Raises OSError."""
        for path in self.directory.glob(f"{image_id}.part*"):
            path.unlink()

    def remove(self, image_id: str) -> None:
        """Leave nothing of an image that nothing else is made of. Raises OSError."""
        for path in self.directory.glob(f"{image_id}.*"):
            path.unlink()
        self.sweep(None)

    def sweep(self, now_s: float | None) -> None:
        """Remove the files that no image and no VM has a name of, since `KEPT_S` or, without a time, at all."""
        if not self._content.is_dir():
            return
        for path in self._content.iterdir():
            status = path.lstat()
            # The time of the last change is when the last but one name went.
            if status.st_nlink == 1 and (now_s is None or status.st_ctime < now_s - KEPT_S):
                path.unlink()

    def _one_of(self, part: Path, image_format: str, sha256: str) -> Path:
        """A name of the file with this content: the part file itself, or a new one of that which was here before."""
        statedir.make(self._content)
        content = self._content / f"{sha256}.{image_format}"
        try:
            os.link(part, content)
            _sync(self._content)
        except FileExistsError:
            if content.lstat().st_size != part.lstat().st_size:
                content.unlink()  # damaged: nothing else of this content has another size
                return self._one_of(part, image_format, sha256)
            fresh = part.with_name(f"{part.name}.same")
            fresh.unlink(missing_ok=True)
            try:
                os.link(content, fresh)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                return part
            return fresh
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        return part


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
