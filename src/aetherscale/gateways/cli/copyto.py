"""A file from here into a guest."""

from __future__ import annotations

import hashlib
import os
import stat
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.copypaths import Place, quoted, shown
from aetherscale.gateways.cli.copyscripts import (
    BLOCK_BYTES,
    BUSY,
    FINISH,
    LOOK_AT_TARGET,
    NO_ROOM,
    PUT,
    nonsense,
    target_of,
)
from aetherscale.gateways.cli.failures import Failure, bad_usage
from aetherscale.gateways.cli.guestprogram import PIECE_BYTES, GuestProgram
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.vm_copy import (
    LONG_S,
    MOST_SAID,
    UNSIZED_BYTES,
    Advance,
    advancing,
    complaint,
    no_room,
    run,
    unfinished,
)


def copy_to(context: Context, source: Place, target: Place, progress: Progress) -> dict[str, Any]:
    """Copy it; what was done. Raises `Failure`, `BusUnavailable`."""
    with _opened(source.path, target) as regular:
        before = os.fstat(regular.fileno())
        progress.step("reading")
        file, size_bytes = _content(source.path, regular, before.st_size)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = Path(source.path).name
        there = target_of(run(context, target.vm, LOOK_AT_TARGET, target.path, name, sha256[:16]), *target)
        path = f"{target.path.rstrip('/')}/{name}" if there.is_inside else target.path
        force = context.values["force"]
        if there.kind not in ("nothing", "file", "link") or (there.kind != "nothing" and not force):
            raise _is_taken(target.vm, path, there.kind)
        directory, _, name = path.rpartition("/")
        part = f"{directory}/.{name}.{sha256[:16]}.part"
        had_bytes = min(there.part_bytes, size_bytes) // BLOCK_BYTES * BLOCK_BYTES
        rest = _Rest(file, size_bytes, had_bytes)
        _send(context, Place(target.vm, path), part, rest, advancing(progress, size_bytes, had_bytes))
        after = os.fstat(regular.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Failure(409, f"vm copy: {shown(source.path)} was changed while it was copied", hint="copy it again")
    progress.step("comparing")
    mode = f"{stat.S_IMODE(before.st_mode) & 0o777:o}"
    _finish(context, target.vm, (part, path, mode, "yes" if force else "no"), sha256)
    return {
        "vm": target.vm,
        "target": f"{target.vm}:{path}",
        "size-bytes": size_bytes,
        "sha256": sha256,
        "resumed-bytes": had_bytes,
    }


class _Rest(NamedTuple):
    """What of a file has to be sent."""

    file: BufferedReader | BytesIO
    size_bytes: int
    had_bytes: int


def _content(path: str, regular: BufferedReader, size_bytes: int) -> tuple[BufferedReader | BytesIO, int]:
    """What a file has, and how much; what has no size, like files of /proc, is read now, once. Raises `Failure`."""
    if size_bytes and not os.path.realpath(path).startswith(("/proc/", "/sys/")):
        return regular, size_bytes
    data = regular.read(UNSIZED_BYTES + 1)
    if len(data) > UNSIZED_BYTES:
        raise bad_usage(f"vm copy: {shown(path)} has no size, and more than {UNSIZED_BYTES >> 20} MiB come out of it")
    return BytesIO(data), len(data)


def _opened(path: str, target: Place) -> BufferedReader:
    """The file; links are followed. Raises `Failure` for what is no regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise bad_usage(f"vm copy: {shown(path)} cannot be read: {error.strerror}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise bad_usage(
                f"vm copy: {shown(path)} is a directory, and one file is copied at a time",
                f"tar c -C {quoted(path)} . | aetherscale vm exec {target.vm} -- tar x -C {quoted(target.path)}",
            )
        raise bad_usage(f"vm copy: {shown(path)} is no regular file")
    return os.fdopen(descriptor, "rb")


def _is_taken(vm: str, path: str, kind: str) -> Failure:
    if kind in ("file", "link"):
        what = "there already" if kind == "file" else "a symbolic link"
        return Failure(409, f"vm copy: {shown(path)} is {what} in {vm}", hint="--force replaces it")
    what = "a directory" if kind == "directory" else "no regular file"
    return Failure(409, f"vm copy: {shown(path)} is {what} in {vm}, which is not replaced")


def _send(context: Context, target: Place, part: str, rest: _Rest, advance: Advance) -> None:
    """Bring the rest of a file to its partial one. Raises `Failure`."""
    vm, (file, size_bytes, had_bytes) = target.vm, rest
    command = ["sh", "-c", PUT, "sh", part, str(had_bytes // BLOCK_BYTES)]
    program = GuestProgram(context, vm, command, has_input=True)
    said = b""
    try:
        file.seek(had_bytes)
        is_whole = False
        while not program.has_ended:
            while not is_whole and program.has_room():
                data = file.read(PIECE_BYTES)
                program.give(data)
                is_whole = not data
                advance(file.tell())
            if (piece := program.heard()) is not None:
                program.took(len(piece.data))
                said = (said + piece.data)[:MOST_SAID]
            elif not program.has_ended:
                program.wait()
    finally:
        program.leave()
    if program.exit_code == BUSY:
        raise Failure(409, f"vm copy: another copy of the same file to {vm} is under way", retryable=True)
    if program.exit_code == NO_ROOM:
        look = f"aetherscale vm exec {vm} -- df -h {quoted(part.rpartition('/')[0] or '/')}"
        raise no_room(vm, target.path, size_bytes, look)
    if program.exit_code is None:
        raise unfinished(program, vm)
    if program.exit_code != 0:
        raise complaint(said.decode(errors="replace"))


def _finish(context: Context, vm: str, what: tuple[str, str, str, str], sha256: str) -> None:
    """Put a partial file that is whole to its place. Raises `Failure`."""
    said = run(context, vm, FINISH, *what, sha256, timeout_s=LONG_S)
    if said == "no-sha256sum":
        said = run(context, vm, FINISH, *what, "-") if _read_back(context, vm, what[0]) == sha256 else "damaged"
    match said:
        case "done":
            return
        case "exists":
            raise _is_taken(vm, what[1], "file")
        case "gone":
            raise Failure(
                409, f"vm copy: {shown(what[0])} has gone from {vm}: did another copy finish it?", retryable=True
            )
        case "damaged":
            raise Failure(500, f"vm copy: what {vm} has is not what was sent", hint="copy it again", retryable=True)
        case _:
            raise nonsense(said)


def _read_back(context: Context, vm: str, path: str) -> str:
    """The digest of a file of a guest that has no sha256sum."""
    program = GuestProgram(context, vm, ["cat", path], has_input=False)
    digest = hashlib.sha256()
    try:
        while not program.has_ended:
            if (piece := program.heard()) is None:
                if not program.has_ended:
                    program.wait()
                continue
            program.took(len(piece.data))
            if not piece.is_error:
                digest.update(piece.data)
    finally:
        program.leave()
    return digest.hexdigest()
