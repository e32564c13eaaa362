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
from aetherscale.gateways.cli.copyscripts import BLOCK_BYTES, GET, LOOK_AT_SOURCE, Source, source_of
from aetherscale.gateways.cli.failures import Failure, bad_usage
from aetherscale.gateways.cli.guestprogram import GuestProgram
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.vm_copy import LONG_S, Advance, Place, advancing, run, unfinished

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
            f"vm copy: {source.path} says that it has 0 bytes, and has some, like those of /proc",
            f"aetherscale vm exec {source.vm} -- cat {source.path}",
        )
    if not there.sha256:
        context.out.note("the guest has no sha256sum: the copy is not compared, and does not go on where it was")
    mark = there.sha256[:16] or context.program.new_token()[:16]
    part = place.with_name(f".{place.name}.{mark}.part")
    try:
        with _partial(part) as descriptor:
            had_bytes = _receive_all(context, source, there, descriptor, progress)
            os.fchmod(descriptor, there.mode)
            os.fsync(descriptor)
            _put(part, place, force=force)
    except OSError as error:
        raise Failure(
            500, f"vm copy: {error.filename or part} cannot be written: {error.strerror}", hint="df -h; ls -ld"
        ) from None
    return {
        "vm": source.vm,
        "target": str(place),
        "size-bytes": there.size_bytes,
        "sha256": there.sha256,
        "resumed-bytes": had_bytes,
    }


def _place(guest_path: str, path: str) -> Path:
    """Where it comes to: in a directory it has the name that was typed for the guest. Raises `Failure`."""
    place = Path(path)
    if place.is_dir() or path.endswith("/"):
        name = guest_path.rpartition("/")[2]
        if name in ("", ".", ".."):
            raise bad_usage(f"vm copy: {guest_path} names no file")
        place /= name
    if not place.parent.is_dir():
        raise bad_usage(f"vm copy: there is no directory {place.parent}")
    return place


def _require_free(place: Path, *, force: bool) -> None:
    """Raises `Failure` where something is there that is not to be replaced."""
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise bad_usage(f"vm copy: {place}: {error.strerror}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise Failure(409, f"vm copy: {place} is no regular file, and is not replaced")
    if not force:
        raise Failure(409, f"vm copy: {place} is there already", hint="--force replaces it")


@contextmanager
def _partial(part: Path) -> Iterator[int]:
    """The partial file, which no other copy writes meanwhile. Raises `Failure`, `OSError`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
            raise Failure(409, f"vm copy: {part} is not ours", hint="remove it, or copy to another directory")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(409, f"vm copy: another copy writes {part}", retryable=True) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _receive_all(context: Context, source: Place, there: Source, descriptor: int, progress: Progress) -> int:
    """All of the file, of which some may be there; how much was. Raises `Failure`, `OSError`."""
    had_bytes = min(os.fstat(descriptor).st_size, there.size_bytes) // BLOCK_BYTES * BLOCK_BYTES
    for begin in dict.fromkeys((had_bytes, 0)):
        os.ftruncate(descriptor, begin)
        advance = advancing(progress, there.size_bytes, begin)
        _receive(context, source, there.size_bytes, descriptor, begin, advance)
        progress.step("comparing")
        if not there.sha256 or _digest(descriptor) == there.sha256:
            return begin
    os.ftruncate(descriptor, 0)
    raise Failure(
        500,
        f"vm copy: what came of {source.path} is not what {source.vm} said: it was changed meanwhile, or damaged",
        hint="copy it again",
        retryable=True,
    )


def _receive(context: Context, source: Place, size_bytes: int, descriptor: int, begin: int, advance: Advance) -> None:
    """The rest of the file, and no more than it was said to have."""
    if begin == size_bytes:
        return
    command = ["sh", "-c", GET, "sh", source.path, str(begin // BLOCK_BYTES)]
    program = GuestProgram(context, source.vm, command, has_input=False)
    at = begin
    try:
        while not program.has_ended and at < size_bytes:
            if (piece := program.heard()) is None:
                if not program.has_ended:
                    program.wait()
                continue
            program.took(len(piece.data))
            if not piece.is_error:
                at += _write(descriptor, piece.data[: size_bytes - at], at)
                advance(at)
    finally:
        program.leave()
    if at < size_bytes:
        if program.exit_code is None:
            raise unfinished(program, source.vm)
        raise Failure(
            500,
            f"vm copy: {source.path} ended after {at} bytes, expected {size_bytes}: was it changed meanwhile?",
            hint="copy it again",
            retryable=True,
        )


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
            raise Failure(409, f"vm copy: {place} is there already", hint="--force replaces it") from None
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
