"""A file of this host as the source of an image: only where the node may read it on behalf of any caller."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale import filecopy, incoming
from aetherscale.actors.images.fetching.transfer import Transfer, open_part
from aetherscale.kernel.fault import Fault

FROM_HERE: Final = (
    "import it on the node's host; or put it below one of the node's image-dirs, where the node may read it"
)


class Places(Struct, frozen=True):
    """Where files may be copied from: below `directories`, never below `state_dir` but for what was handed over."""

    state_dir: Path
    directories: tuple[Path, ...] = ()


def copy(source: str, transfer: Transfer, places: Places) -> int:
    """Copy `source` into the part file; returns its size in bytes. Raises Fault, OSError and Stopped."""
    original = _open(source, places)
    try:
        transfer.require_allowed(os.fstat(original).st_size, None)
        part = open_part(transfer.part)
        try:
            return filecopy.copy(original, part, transfer.advance)
        finally:
            os.close(part)
    finally:
        os.close(original)


def _open(source: str, places: Places) -> int:
    """The file, open for reading. Raises Fault, in the same words for what is not there and what is forbidden."""
    try:
        if incoming.is_handed_over(places.state_dir, source):
            return filecopy.open_below([places.state_dir / incoming.DIRECTORY], source)
        return filecopy.open_below(places.directories, source, never=[places.state_dir])
    except (OSError, ValueError) as error:
        raise Fault(f"{source} is no file that this node may import", FROM_HERE, retryable=False) from error
