"""Files that local callers hand over to a node: each in a directory of its own below the node's state directory.

    <state-dir>/incoming/               the node's; where the state directory has a group, its members may come in
    <state-dir>/incoming/node.json      the name of the node, and where it finds this directory
    <state-dir>/incoming/<token>/NAME   a file that was handed over; the token cannot be guessed, nor listed

The caller opens the file with its own rights and copies it there, so that a node never reads for somebody what that
somebody may not read. The node removes it when it has taken it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.filecopy import Advance, copy, open_file
from aetherscale.kernel.fault import Fault

DIRECTORY: Final = "incoming"
KEPT_S: Final = 7 * 24 * 3600.0
"""How long a file stays that no node has taken: its caller has died, or the node is away."""

_NODE: Final = "node.json"
_TOKEN: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_NAME: Final = 100


class _Node(msgspec.Struct, frozen=True):
    """The node that takes files here, and its path of the directory: the caller may come another way, by a link or a
    mount.
    """

    node: str
    directory: str


def prepare(state_dir: Path, node: str) -> None:
    """Have the directory, private, or as open to the group as the state directory is. Raises OSError."""
    directory = state_dir / DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    of_state = state_dir.stat()
    if of_state.st_mode & stat.S_IXGRP:
        # Members may make things and reach what they know the name of, and see or remove nothing else.
        os.chown(directory, -1, of_state.st_gid)
        directory.chmod(stat.S_ISVTX | 0o730)
    else:
        directory.chmod(0o700)
    name = directory / _NODE
    name.unlink(missing_ok=True)
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o640 if of_state.st_mode & stat.S_IXGRP else 0o600)
        os.write(descriptor, msgspec.json.encode(_Node(node, str(directory))))
    finally:
        os.close(descriptor)


def hand_over(state_dir: Path, source: Path, token: str, advance: Advance) -> tuple[str, str]:
    """Copy a file, opened with the caller's own rights; where the node finds it, and the name of that node.

    Raises FileNotFoundError where no node of this version has been, `Fault`, OSError, and what `advance` raises.
    """
    directory = state_dir / DIRECTORY
    try:
        taker = msgspec.json.decode((directory / _NODE).read_bytes(), type=_Node)
    except msgspec.MsgspecError:
        raise Fault(
            f"{directory / _NODE} is not what a node writes there",
            "is a node of this version starting just now? Try again; else restart it",
            retryable=True,
        ) from None
    theirs = directory.stat()
    is_shared = bool(theirs.st_mode & stat.S_IXGRP)
    original = open_file(source)
    place = directory / token
    try:
        os.mkdir(place, 0o700)
        try:
            _give(place, theirs)
            place.chmod(0o770 if is_shared else 0o700)
            target = place / plain(source.name)
            descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                copy(original, descriptor, advance)
                _give(descriptor, theirs)
                os.fchmod(descriptor, 0o640 if is_shared else 0o600)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    finally:
        os.close(original)
    return f"{taker.directory}/{token}/{target.name}", taker.node


def is_handed_over(state_dir: Path, source: str) -> bool:
    """Whether a source is a place for a file that was handed over."""
    parts = Path(source).parts
    return parts[:-2] == (state_dir / DIRECTORY).parts and _TOKEN.fullmatch(parts[-2]) is not None


def withdraw(state_dir: Path, token: str) -> None:
    """Remove what was handed over under a token, where it was refused."""
    shutil.rmtree(state_dir / DIRECTORY / token, ignore_errors=True)


def forget(state_dir: Path, source: str) -> None:
    """Remove a file that was handed over, once it has been taken or is not wanted; nothing for another source."""
    if is_handed_over(state_dir, source):
        shutil.rmtree(Path(source).parent, ignore_errors=True)


def sweep(state_dir: Path, now_s: float) -> None:
    """Remove what has been there for too long."""
    directory = state_dir / DIRECTORY
    if not directory.is_dir():
        return
    for entry in os.scandir(directory):
        if _TOKEN.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < now_s - KEPT_S:
            shutil.rmtree(entry.path, ignore_errors=True)


def _give(place: Path | int, theirs: os.stat_result) -> None:
    """Root's file becomes the node's, which may run as another user; that of a member of the group the group's.

    By hand and not by a set-group-id directory, which the service may not make (systemd.exec(5), RestrictSUIDSGID).
    """
    if os.geteuid() == 0:
        os.chown(place, theirs.st_uid, theirs.st_gid)
    elif theirs.st_mode & stat.S_IXGRP:
        os.chown(place, -1, theirs.st_gid)


def plain(name: str) -> str:
    """A file's name without what a message cannot carry."""
    return "".join(c if c.isprintable() else "_" for c in name)[-_MOST_NAME:]
