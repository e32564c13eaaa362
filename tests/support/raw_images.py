"""Images for guests that need nothing but to run."""

from __future__ import annotations

from pathlib import Path


def bare_image(directory: Path) -> Path:
    """A raw disk of 1 MiB with a boot signature and nothing behind it: its guest runs at once, and never gets ready."""
    image = directory / "bare.img"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512))
    return image


def idle_image(directory: Path) -> Path:
    """The same, but for a processor that its guest halts at once: many of them cost nothing."""
    image = directory / "idle.img"
    # cli; hlt; jmp to the hlt
    image.write_bytes(b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    return image
