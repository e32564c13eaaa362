"""A file from a guest to here. Nothing that the guest says is trusted: neither a size nor a digest."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.copypaths import Place, quoted, shown
from aetherscale.gateways.cli.copyscripts import BLOCK_BYTES, GET, LOOK_AT_SOURCE, Source, source_of
from aetherscale.gateways.cli.failures import Failure, bad_usage
from aetherscale.gateways.cli.guestprogram import GuestProgram
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.vm_copy import LONG_S, UNSIZED_BYTES, Advance, advancing, no_room, run, unfinished

EMPTY: Final = hashlib.sha256().hexdigest()


def copy_from(context: Context, source: Place, target: Place, progress: Progress) -> dict[str, Any]:
    """Copy it; what was done. Raises `Failure`, `BusUnavailable`."""
    place = _place(source.path, target.path)
    force = context.values["force"]
    _require_free(place, force=force)
    progress.step("reading")
    there = source_of(run(context, source.vm, LOOK_AT_SOURCE, source.path, timeout_s=LONG_S), *source)
    if there.size_bytes == 0 and there.sha256 not in ("", EMPTY):
        raise bad_usage(
            f"vm copy: {shown(source.path)} says that it has 0 bytes, and has some",
            f"aetherscale vm exec {source.vm} -- cat {quoted(source.path)}",
        )
    if there.is_unsized:
        context.out.note(f"{shown(source.path)} has no size and changes as it is read: the copy is not compared")
    elif not there.sha256:
        context.out.note("the guest has no sha256sum: the copy is not compared, and does not go on where it was")
    mark = there.sha256[:16] or context.program.new_token()[:16]
    part = place.with_name(f".{place.name}.{mark}.part")
    try:
        with _partial(part) as descriptor:
            try:
                size_bytes, had_bytes = _receive_all(context, source, there, descriptor, progress)
                os.fchmod(descriptor, there.mode)
                os.fsync(descriptor)
            except BaseException as failed:
                if not there.sha256 or _is_full(failed):
                    part.unlink(missing_ok=True)  # no copy would go on with it, or the target stayed full
                raise
            _put(part, place, force=force)
    except OSError as error:
        if _is_full(error):
            hint = f"df -h {quoted(str(place.parent))}"
            raise no_room(shown(str(place.parent)), str(place), there.size_bytes, hint) from None
        raise Failure(
            500,
            f"vm copy: {shown(str(error.filename or part))} cannot be written: {error.strerror}",
            hint=f"ls -ld {quoted(str(place.parent))}",
        ) from None
    return {
        "vm": source.vm,
        "target": str(place),
        "size-bytes": size_bytes,
        "sha256": there.sha256,
        "resumed-bytes": had_bytes,
    }


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _place(guest_path: str, path: str) -> Path:
    """Where it comes to: in a directory it has the name that was typed for the guest. Raises `Failure`."""
    place = Path(path)
    if place.is_dir() or path.endswith("/"):
        name = guest_path.rpartition("/")[2]
        if name in ("", ".", ".."):
            raise bad_usage(f"vm copy: {shown(guest_path)} names no file")
        place /= name
    if not place.parent.is_dir():
        raise bad_usage(f"vm copy: there is no directory {shown(str(place.parent))}")
    return place


def _require_free(place: Path, *, force: bool) -> None:
    """Raises `Failure` where something is there that is not to be replaced."""
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise bad_usage(f"vm copy: {shown(str(place))}: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise Failure(409, f"vm copy: {shown(str(place))} is no regular file, and is not replaced")
    if not force:
        raise Failure(409, f"vm copy: {shown(str(place))} is there already", hint="--force replaces it")


@contextmanager
def _partial(part: Path) -> Iterator[int]:
    """The partial file, which no other copy writes meanwhile. Raises `Failure`, `OSError`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
            raise Failure(
                409, f"vm copy: {shown(str(part))} is not ours", hint="remove it, or copy to another directory"
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(409, f"vm copy: another copy writes {shown(str(part))}", retryable=True) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _receive_all(
    context: Context, source: Place, there: Source, descriptor: int, progress: Progress
) -> tuple[int, int]:
    """All of the file, of which some may be there; its size, and how much was. Raises `Failure`, `OSError`."""
    if there.is_unsized:
        return _receive_unsized(context, source, descriptor, advancing(progress, 0, 0)), 0
    had_bytes = min(os.fstat(descriptor).st_size, there.size_bytes) // BLOCK_BYTES * BLOCK_BYTES
    for begin in dict.fromkeys((had_bytes, 0)):
        os.ftruncate(descriptor, begin)
        advance = advancing(progress, there.size_bytes, begin)
        _receive(context, source, there.size_bytes, descriptor, begin, advance)
        progress.step("comparing")
        if not there.sha256 or _digest(descriptor) == there.sha256:
            return there.size_bytes, begin
    os.ftruncate(descriptor, 0)
    raise Failure(
        500,
        f"vm copy: what came of {shown(source.path)} is not what {source.vm} said: it was changed, or damaged",
        hint="copy it again",
        retryable=True,
    )


def _receive(context: Context, source: Place, size_bytes: int, descriptor: int, begin: int, advance: Advance) -> None:
    """The rest of the file, and no more than it was said to have."""
    if begin == size_bytes:
        return
    command = ["sh", "-c", GET, "sh", source.path, str(begin // BLOCK_BYTES)]
    program = GuestProgram(context, source.vm, command, has_input=False)
    at = _taken(program, descriptor, begin, size_bytes, advance)
    if at < size_bytes:
        if program.exit_code is None:
            raise unfinished(program, source.vm)
        raise Failure(
            500,
            f"vm copy: {shown(source.path)} ended after {at} bytes, expected {size_bytes}: was it changed meanwhile?",
            hint="copy it again",
            retryable=True,
        )


def _receive_unsized(context: Context, source: Place, descriptor: int, advance: Advance) -> int:
    """All that comes out of a file that has no size, up to a bound; how much."""
    os.ftruncate(descriptor, 0)
    program = GuestProgram(context, source.vm, ["sh", "-c", GET, "sh", source.path, "0"], has_input=False)
    size_bytes = _taken(program, descriptor, 0, UNSIZED_BYTES + 1, advance)
    if size_bytes > UNSIZED_BYTES:
        what = f"has no size, and more than {UNSIZED_BYTES >> 20} MiB come out of it"
        raise bad_usage(f"vm copy: {shown(source.path)} {what}")
    if program.exit_code is None:
        raise unfinished(program, source.vm)
    if program.exit_code != 0:
        raise Failure(500, f"vm copy: {shown(source.path)} cannot be read in the guest")
    return size_bytes


def _taken(program: GuestProgram, descriptor: int, begin: int, most: int, advance: Advance) -> int:
    """Write what a program sends to a file from `begin` on, up to `most`; where it has come."""
    at = begin
    try:
        while not program.has_ended and at < most:
            if (piece := program.heard()) is None:
                if not program.has_ended:
                    program.wait()
                continue
            program.took(len(piece.data))
            if not piece.is_error:
                at += _write(descriptor, piece.data[: most - at], at)
                advance(at)
    finally:
        program.leave()
    return at


def _write(descriptor: int, data: bytes, at: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)
    return done


def _digest(descriptor: int) -> str:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(part: Path, place: Path, *, force: bool) -> None:
    """Bring it to its place in one step, and lastingly. Raises `Failure`, `OSError`."""
    if force:
        part.replace(place)
    else:
        try:
            os.link(part, place)
        except FileExistsError:
            raise Failure(409, f"vm copy: {shown(str(place))} is there already", hint="--force replaces it") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            _require_free(place, force=False)  # a file system without links
            part.replace(place)
        part.unlink(missing_ok=True)
    directory = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
