"""An image that a recipe has made."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from aetherscale.actors.images.model.effects import ImageFormat


class BuiltImage(Struct, frozen=True):
    """A disk image that was made: SHA-256 in hex of its bytes, and the packages (with their versions) in it."""

    path: Path
    format: ImageFormat
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
    packages: tuple[str, ...] = ()
