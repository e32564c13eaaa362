"""The fake of the real driver: images that are there or not, of a size that is always the same. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aetherscale.actors.images.catalogue.catalogues import Catalogues
from aetherscale.actors.images.model.effects import (
    FetchImage,
    ImageRemoved,
    ImagesEffect,
    ImagesOutcome,
    ImageStored,
    ImageUnchanged,
    RemoveImage,
)
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress, Report

SHA256: Final = "a" * 64


class SimulatedStore:
    """The images of a host. It outlives the drivers on it, as files do."""

    def __init__(self) -> None:
        self.images: set[str] = set()
        """The ids of those that are there."""
        self.size_bytes = 1 << 20
        """The size of each, and of the disk in it."""
        self.failures: list[tuple[str, bool]] = []
        """The failures of the next effects: a reason, and whether a retry may help."""
        self.edition = 1
        """Which one of what is published is there now."""


class SimulatedImages:
    """The driver of the images component on a store in memory."""

    def __init__(self, store: SimulatedStore | None = None) -> None:
        self._store = store or SimulatedStore()
        self.catalogue = Catalogues()

    async def start(self, report: Report[Any]) -> None:
        """As in `Driver`: nothing happens to images by itself."""

    async def perform(self, effect: ImagesEffect, progress: Progress) -> ImagesOutcome:
        """As in `Driver`."""
        if self._store.failures:
            reason, retryable = self._store.failures.pop(0)
            return EffectFailed(effect.key, reason, retryable=retryable)
        if isinstance(effect, RemoveImage):
            self._store.images.discard(effect.image_id)
            return ImageRemoved(effect.key)
        published = None
        if isinstance(effect, FetchImage) and effect.checksums is not None:
            published = f"sha256:{self._store.edition:064x}"
            if published == effect.known:
                return ImageUnchanged(effect.key)
        self._store.images.add(effect.image_id)
        sha256 = SHA256 if published is None else published.partition(":")[2]
        return ImageStored(effect.key, "raw", sha256, self._store.size_bytes, self._store.size_bytes, published)

    async def reconcile(self, expected: Mapping[str, Any]) -> None:
        """As in `Driver`: what is missing is noticed by those who use it."""

    async def contents(self, image_id: str, image_format: str, sha256: str) -> Any:
        """As in `Reads`."""
        raise Fault("the image is simulated: there is nothing in it", "ask a node that is not", retryable=False)

    async def exported(self, image_id: str, image_format: str, sha256: str, progress: Progress) -> tuple[str, int]:
        """As in `Reads`: nothing comes out of it."""
        return sha256, 0

    async def piece(self, image_id: str, image_format: str, sha256: str, offset: int) -> bytes:
        """As in `Reads`."""
        return b""

    async def close(self) -> None:
        """As in `Driver`."""
