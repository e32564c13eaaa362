"""The port that the images component offers to the drivers of others."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Protocol

IMAGE_FILES: Final = "image-files"
"""The name of `ImageFiles`."""


class ImageFiles(Protocol):
    """The files of images, for those that make disks of them."""

    def path(self, image_id: str, image_format: Literal["qcow2", "raw"]) -> Path:
        """Where the file of an image is."""
        ...

    def write_overlay(self, path: Path, base_format: str, virtual_size_bytes: int, base_name: str) -> None:
        """Write an empty qcow2 overlay, whose base is found by its name beside it. Raises OSError."""
        ...
