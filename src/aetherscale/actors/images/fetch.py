"""Bringing a file in: copied from this host or downloaded, with its checksum verified before anything parses it.

The file grows at a path that the caller gives. Nobody may take it from there before `fetch` has returned: then it is
whole, has the right checksum, and is on the disk. What is known of a download that is not done lies beside it, as
`<part>.json`, so that the next try goes on where this one ended. Knows nothing of images.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale.actors.images.copying import copy
from aetherscale.actors.images.download import download, forget
from aetherscale.actors.images.threads import until_stopped
from aetherscale.actors.images.transfer import CHUNK_BYTES, FetchFailed, Limits, Progress, Transfer

__all__ = ["FetchFailed", "Fetched", "Limits", "fetch"]

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
    limits: Limits | None = None,
) -> Fetched:
    """Have what is at `source`, an absolute path or an http or https URL, at `part_path`, with mode 0600.

    `sha256` (64 lower-case hex digits) is what its checksum has to be. Cancelling this ends the transfer before it
    returns. Raises FetchFailed; what came in so far stays where it makes sense to go on from there.
    """
    loop = asyncio.get_running_loop()

    def report(done_bytes: int, total_bytes: int | None) -> None:
        loop.call_soon_threadsafe(progress, done_bytes, total_bytes)

    transfer = Transfer(part_path, size_cap_bytes, report)
    bring = partial(_bring, source, transfer, sha256, limits or Limits())
    fetched = await until_stopped(bring, transfer.stop)
    progress(fetched.size_bytes, fetched.size_bytes)
    return fetched


def _bring(source: str, transfer: Transfer, sha256: str | None, limits: Limits) -> Fetched:
    """Copy or download, then look at the checksum, then make it last."""
    part = transfer.part
    try:
        if source.startswith("/"):
            forget(part)
            copy(Path(source), transfer)
        elif source.startswith(("http://", "https://")):
            download(source, transfer, limits)
        else:
            raise FetchFailed(
                f"{source[:100]!r} is neither an absolute path nor an http or https URL",
                "give one of these",
                retryable=False,
            )
        found, size_bytes = _settle(transfer)
    except OSError as error:
        raise _no_transfer(error, part) from error
    finally:
        transfer.close()
    if sha256 is not None and found != sha256:
        part.unlink()
        forget(part)
        raise FetchFailed(
            f"its SHA-256 is {found}, and {sha256} was expected",
            "look at both the source and the checksum: one of them is not what you think",
            retryable=False,
        )
    forget(part)
    return Fetched(part, found, size_bytes)


def _settle(transfer: Transfer) -> tuple[str, int]:
    """Have the part file on the disk, and read what is there: its SHA-256 in hex and its size in bytes."""
    digest = hashlib.sha256()
    with transfer.part.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
            transfer.go_on()
        return digest.hexdigest(), file.tell()


def _no_transfer(error: OSError, part: Path) -> FetchFailed:
    """What an error of this host means for the transfer."""
    if error.errno in _NO_ROOM:
        return FetchFailed(f"no room on the disk of {part.parent}", f"make room: df -h {part.parent}", retryable=False)
    return FetchFailed(f"{part} cannot be written: {error.strerror or error}", "aetherscale doctor", retryable=False)
