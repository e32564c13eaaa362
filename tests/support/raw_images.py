"""Images for guests that need nothing but to run."""

from __future__ import annotations

from pathlib import Path


def bare_image(directory: Path) -> Path:
    """A raw disk of 1 MiB with a boot signature and nothing behind it: its guest runs at once, and never gets ready."""
    image = directory / "bare.img"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512))
    return image
