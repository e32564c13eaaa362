"""Bringing a file in: copied from this host or downloaded, with its checksum verified before anything parses it.

The file grows at a path that the caller gives. It must not be taken from there before `fetch` has returned: then it is
whole, has the right checksum, and is on the disk. What is known of a download that is not done lies beside it, as
`<part>.json`, so that the next try goes on where this one ended if the server can show that its file is the same. Knows
nothing of images.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale import shortage
from aetherscale.actors.images.catalogue.sums import Digest
from aetherscale.actors.images.fetching.copying import Places, copy
from aetherscale.actors.images.fetching.download import again, download, forget
from aetherscale.actors.images.fetching.transfer import CHUNK_BYTES, Limits, Progress, Stopped, Transfer
from aetherscale.filecopy import data_of
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import until_stopped

__all__ = ["Fault", "Fetched", "Limits", "fetch", "read"]

_ZEROS: Final = memoryview(bytes(CHUNK_BYTES))
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Fetched(Struct, frozen=True):
    """A file that came in whole: where it is, its SHA-256 in hex, and its size in bytes."""

    path: Path
    sha256: str
    size_bytes: int


async def fetch(
    source: str,
    part_path: Path,
    *,
    sha256: str | None,
    size_cap_bytes: int,
    progress: Progress,
    places: Places,
    published: Digest | None = None,
    limits: Limits | None = None,
    is_crowded: Callable[[], bool] = lambda: False,
    checking: Callable[[], None] = lambda: None,
) -> Fetched:
    """Have what is at `source`, an absolute path or an http or https URL, at `part_path`, with mode 0600.

    `sha256` (64 lower-case hex digits) is what its checksum has to be, and so is `published`. Cancelling this ends the
    transfer before it returns. `checking` is called when all of it is there. Raises Fault; what came in so far stays
    where it makes sense to go on from there.
    """
    loop = asyncio.get_running_loop()

    def report(done_bytes: int, total_bytes: int | None) -> None:
        loop.call_soon_threadsafe(progress, done_bytes, total_bytes)

    transfer = Transfer(part_path, size_cap_bytes, report)
    limits = limits or Limits()
    expected = [digest for digest in (sha256 and Digest("sha256", sha256), published) if digest]
    bring = partial(_bring, source, transfer, expected, limits, places, lambda: loop.call_soon_threadsafe(checking))
    async with _kept_up(source, transfer, limits, is_crowded):
        fetched = await until_stopped(bring, transfer.stop)
    progress(fetched.size_bytes, fetched.size_bytes)
    return fetched


@contextlib.asynccontextmanager
async def _kept_up(
    source: str, transfer: Transfer, limits: Limits, is_crowded: Callable[[], bool]
) -> AsyncIterator[None]:
    """Stop a transfer whose server keeps it from others, or from its end, by sending too little."""

    async def watch() -> None:
        while True:
            before_bytes = transfer.received_bytes
            await asyncio.sleep(limits.pace_s)
            came_bytes = transfer.received_bytes - before_bytes
            crowded = is_crowded()
            least_bytes = limits.crowded_bytes if crowded else limits.pace_bytes
            if transfer.is_arriving and came_bytes < least_bytes:
                others = ", while others waited" if crowded else ""
                transfer.stop(
                    Fault(
                        f"the server is too slow: {came_bytes} bytes came in {limits.pace_s:g} s{others}, and "
                        f"{least_bytes} have to",
                        f"try again later{again(source, transfer.part)}; or download it yourself and import the file",
                        retryable=True,
                    )
                )

    watching = asyncio.ensure_future(watch())  # noqa: TID251 - ended below
    try:
        yield
    finally:
        watching.cancel()


def _bring(
    source: str,
    transfer: Transfer,
    expected: Sequence[Digest],
    limits: Limits,
    places: Places,
    checking: Callable[[], object],
) -> Fetched:
    """Copy or download, then look at the checksum, then make it last."""
    part = transfer.part
    try:
        if source.startswith("/"):
            forget(part)
            copy(source, transfer, places)
        elif source.startswith(("http://", "https://")):
            transfer.is_arriving = True
            download(source, transfer, limits)
            transfer.is_arriving = False
        else:
            raise Fault(
                f"{source[:100]!r} is neither an absolute path nor an http or https URL",
                "give one of these",
                retryable=False,
            )
        checking()
        found, size_bytes = _settle(transfer, {digest.algorithm for digest in expected})
    except OSError as error:
        raise _no_transfer(error, part) from error
    finally:
        transfer.close()
    for digest in expected:
        if found[digest.algorithm] != digest.digits:
            part.unlink()
            forget(part)
            name = digest.algorithm.upper().replace("SHA", "SHA-")
            raise Fault(
                f"its {name} is {found[digest.algorithm]}, and {digest.digits} was expected",
                "check both the source and the checksum: one of them is wrong",
                retryable=False,
            )
    forget(part)
    return Fetched(part, found["sha256"], size_bytes)


def _settle(transfer: Transfer, algorithms: Collection[str]) -> tuple[Mapping[str, str], int]:
    """Have the part file on the disk, and read what is there: its checksums, SHA-256 among them, and its size."""
    descriptor = os.open(transfer.part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        return digests_of(descriptor, transfer.go_on, algorithms)
    finally:
        os.close(descriptor)


async def read(path: Path) -> Fetched:
    """The result for a file that came in before."""
    stop = threading.Event()

    def go_on() -> None:
        if stop.is_set():
            raise Stopped

    def look() -> Fetched:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return Fetched(path, *digest_of(descriptor, go_on))
        finally:
            os.close(descriptor)

    return await until_stopped(look, stop.set)


def digest_of(file: int, go_on: Callable[[], None]) -> tuple[str, int]:
    """The SHA-256 in hex of an open file, and its size in bytes. Holes are not read. Raises what `go_on` raises."""
    digests, size_bytes = digests_of(file, go_on, ())
    return digests["sha256"], size_bytes


def digests_of(file: int, go_on: Callable[[], None], algorithms: Collection[str]) -> tuple[Mapping[str, str], int]:
    """As `digest_of`, with checksums of other algorithms too, by their names."""
    digests = {name: hashlib.new(name) for name in {"sha256", *algorithms}}
    done, size_bytes = 0, os.fstat(file).st_size
    for start, end in (*data_of(file, size_bytes), (size_bytes, size_bytes)):
        while done < end:
            # Up to `start` there is a hole.
            piece = _ZEROS[: start - done] if done < start else os.pread(file, min(CHUNK_BYTES, end - done), done)
            if not piece:
                size_bytes = done
                break
            for digest in digests.values():
                digest.update(piece)
            done += len(piece)
            go_on()
    return {name: digest.hexdigest() for name, digest in digests.items()}, size_bytes


def _no_transfer(error: OSError, part: Path) -> Fault:
    """The error of the transfer that an error of this host leads to."""
    if error.errno in _NO_ROOM:
        # What has arrived would keep the log from growing, so it is not kept.
        part.unlink(missing_ok=True)
        forget(part)
        return Fault(f"no room on the disk of {part.parent}", f"make room: df -h {part.parent}", retryable=False)
    hint = shortage.hint_of(error.errno) or "aetherscale doctor"
    return Fault(f"{part} cannot be written: {error.strerror or error}", hint, retryable=False)
