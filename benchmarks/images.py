"""A disk to boot that does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SIZE_BYTES: Final = 1024 * 1024
HALT: Final = b"\xfa\xf4"
"""`cli; hlt`: the guest stays where it is and takes no time of the host's."""
SIGNATURE: Final = b"\x55\xaa"


def bare_image(directory: Path) -> Path:
    """A raw image of 1 MiB whose boot sector halts the machine."""
    path = directory / "bare.raw"
    path.write_bytes((HALT.ljust(510, b"\0") + SIGNATURE).ljust(SIZE_BYTES, b"\0"))
    return path
