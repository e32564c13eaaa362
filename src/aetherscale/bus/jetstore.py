"""Where a nats-server of our own keeps JetStream's streams: whether that can be used, and how it is put aside.

What a node keeps there is a copy of its log, which is made anew. Others may have streams of their own there, so nothing
is thrown away.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

PROBE_BYTES: Final = 256 * 1024
"""With room for so much it is worth to start JetStream."""
MAX_ASIDE: Final = 3
"""So many damaged stores are kept; then a human has to look."""


def obstacle(store: Path) -> str:
    """Why nothing can be stored there; "" where something can. A store that is not there yet will be made."""
    directory = store if store.is_dir() else store.parent
    probe = directory / ".aetherscale-probe"
    try:
        with suppress(FileNotFoundError):
            probe.unlink()
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            left = bytes(PROBE_BYTES)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        return f"{directory} cannot be written: {error.strerror}"
    return ""


def put_aside(store: Path) -> Path | None:
    """Move a store away that no server starts with; None where that cannot be done, or was done too often."""
    for number in range(1, MAX_ASIDE + 1):
        aside = store.with_name(f"{store.name}.broken-{number}")
        if not os.path.lexists(aside):
            try:
                store.rename(aside)
            except OSError:
                return None
            return aside
    return None
