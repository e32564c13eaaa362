"""The port that the images component offers to the drivers of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, Protocol

from aetherscale.actors.images.model.catalogued import Entry

IMAGE_FILES: Final = "image-files"
"""The name of `ImageFiles`."""
CATALOGUE: Final = "image-catalogue"
"""The name of `Catalogue`."""


class ImageFiles(Protocol):
    """The files of images, for those that make disks of them."""

    def path(self, image_id: str, image_format: Literal["qcow2", "raw"], sha256: str | None = None) -> Path:
        """Where the file of an image is; with this SHA-256, where it is known, even if it has been updated since."""
        ...

    def write_overlay(self, path: Path, base_format: str, virtual_size_bytes: int, base_name: str) -> None:
        """Write an empty qcow2 overlay, whose base is found by its name beside it. Raises OSError."""
        ...


class Catalogue(Protocol):
    """What can be fetched by its name."""

    def find(self, name: str) -> Entry | None:
        """The entry of a name that has a file for this host's architecture, if there is one."""
        ...

    def entries(self) -> Iterator[tuple[Literal["shipped", "own"], Entry]]:
        """All entries by name, with whose they are: the program's, or the operator's."""
        ...

    async def refresh(self) -> str:
        """Read the operator's catalogue anew. What is wrong with it, in one line, or ""."""
        ...
