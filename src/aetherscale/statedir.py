"""The state directory: opening, making and writing files in it so that no other user can make us write elsewhere.

A user who can write to a directory can put a symbolic link where a file is expected, and a program that opens the file
writes to the link's target. So a file is opened below a descriptor of its directory, which has to be ours and not
writable by others, and never through a link. On the way to the directory a link is followed only where root or we have
made it. Everything that is made is 0700 or 0600, whatever the umask. Has never heard of what is in the files.

Reading is another matter: root may read any node's directory, and leaves nothing in it.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
OTHERS_WRITE: Final = 0o022
"""Where the directory is sticky as /tmp is, no other user can take our files away; each file is looked at by itself."""
_LOOP: Final = 40
"""As in path_resolution(7)."""

_WALK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class NotOurs(PermissionError):
    """Another user could make us write elsewhere: nothing was written. `hint` is what to type."""

    def __init__(self, what: str, path: Path, hint: str) -> None:
        super().__init__(errno.EPERM, what, str(path))
        self.hint = hint


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a directory that is ours. Raises `NotOurs`, OSError."""
    descriptor = _descriptor(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def require(path: Path) -> None:
    """Raises `NotOurs` for a directory that is not ours alone to write to, and OSError."""
    with opened(path):
        pass


def is_ours(path: Path) -> bool:
    """Whether a directory belongs to us; what others may do to it is not asked. Raises OSError."""
    return path.stat().st_uid == os.geteuid()


def owner_of(path: Path) -> str:
    """The name of the user whose file or directory it is. Raises OSError."""
    return _name(path.stat().st_uid)


def make(path: Path) -> None:
    """Ensure a directory of ours, with all above it; what is made is 0700. Raises `NotOurs`, OSError."""
    missing = []
    place = path
    while not _exists(place):
        missing.append(place)
        place = place.parent
    for directory in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            directory.mkdir(mode=DIRECTORY_MODE)
            with opened(directory) as descriptor:
                os.fchmod(descriptor, DIRECTORY_MODE)
    require(path)


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a file of ours, closed on exec; one that is made is 0600.

    Raises `NotOurs` for a link, for what is no file, and for one that is not ours alone; and OSError.
    """
    with opened(path.parent) as directory:
        try:
            descriptor = os.open(
                path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE, dir_fd=directory
            )
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _planted(path, "is a symbolic link") from None
            raise _named(error, path) from None
    try:
        _require_file(os.fstat(descriptor), path)
        if flags & os.O_CREAT:
            os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def require_files(directory: Path, names: tuple[str, ...]) -> None:
    """For a library that opens files by their names: each is a file of ours, or not there.

    Raises `NotOurs`, OSError.
    """
    with opened(directory) as descriptor:
        for name in names:
            with suppress(FileNotFoundError):
                _require_file(os.stat(name, dir_fd=descriptor, follow_symlinks=False), directory / name)


def read_file(path: Path, most_bytes: int) -> bytes:
    """The beginning of a file, never through a link; whose it is does not matter. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, most_bytes)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, mode: int = FILE_MODE) -> None:
    """Write a file in one step, never through a link: the old one is there, or the new one. Its mode is the given one.

    The caller has made sure of the directory. Raises OSError.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


def _descriptor(path: Path) -> int:
    walked = _walk(path)
    try:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=walked)
    except OSError as error:
        raise _named(error, path) from None
    finally:
        os.close(walked)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            owner = _name(found.st_uid)
            raise NotOurs(
                f"it belongs to {owner}, and this is {_name(os.geteuid())}: nothing was written to it",
                path,
                f"run the command as {owner} (sudo -u {owner} …), or give another --state-dir DIR",
            )
        if found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            raise NotOurs(
                f"others may write to it (mode {stat.S_IMODE(found.st_mode):o}), so nothing was written to it",
                path,
                f"chmod 700 {path}",
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _walk(path: Path) -> int:
    """A descriptor of what a path leads to, through no link but those that root or we have made. Raises OSError."""
    ahead = list(reversed(os.path.abspath(path).split("/")))
    here, links = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), 0
    try:
        while ahead:
            name = ahead.pop()
            if name in ("", "."):
                continue
            there = os.open(name, _WALK, dir_fd=here)
            try:
                found = os.fstat(there)
                if stat.S_ISLNK(found.st_mode):
                    links += 1
                    target = os.readlink("", dir_fd=there)
                    if links > _LOOP:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    if found.st_uid not in (0, os.geteuid()):
                        raise _planted(path, f"is reached through a symbolic link of {_name(found.st_uid)}, {name}")
                    ahead += reversed(target.split("/"))
                    if target.startswith("/"):
                        os.close(here)
                        here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                else:
                    here, there = there, here
            finally:
                os.close(there)
    except NotOurs:
        os.close(here)
        raise
    except OSError as error:
        os.close(here)
        raise _named(error, path) from None
    return here


def _require_file(found: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _planted(path, "is a symbolic link")
    if not stat.S_ISREG(found.st_mode):
        raise _planted(path, "is no file")
    if found.st_uid != os.geteuid():
        owner = _name(found.st_uid)
        raise NotOurs(
            f"it belongs to {owner}, and this is {_name(os.geteuid())}: it was left as it is",
            path,
            f"run the command as {owner}, or, if the directory is yours: chown {_name(os.geteuid())} {path}",
        )
    if found.st_nlink > 1:
        raise _planted(path, "has a second name somewhere else (a hard link)")


def _planted(path: Path, what: str) -> NotOurs:
    return NotOurs(f"it {what}, which aetherscale never makes: it was left as it is", path, f"look at it: ls -l {path}")


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _named(error: OSError, path: Path) -> OSError:
    """The error with the path that was meant, and not with a part of it."""
    return OSError(error.errno, error.strerror, str(path))


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
