"""The images of this host: one file each below one directory, checked before anything else reads it.

<images>/<image-id>.<format>   a stored image, read-only; VMs have hard links to it
<images>/<image-id>.part*      one that is on its way
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from aetherscale import statedir
from aetherscale.actors.component import Progress
from aetherscale.actors.images import effects
from aetherscale.actors.images.debian import BuildFailed
from aetherscale.actors.images.effects import EffectFailed, ImageRemoved, ImageStored
from aetherscale.actors.images.header import ImageRejected, inspect
from aetherscale.actors.images.transfer import FetchFailed
from aetherscale.kernel.replies import status

SIZE_CAP_BYTES: Final = 1024**4
"""The largest file that is taken in."""
READ_ONLY: Final = 0o400
"""QEMU gets it as an open descriptor, whatever its uid."""


class HostImages:
    """Performs the effects of the images component."""

    def __init__(self, images_dir: Path, cache_dir: Path) -> None:
        self._images_dir = images_dir
        self._cache_dir = cache_dir

    async def perform(self, effect: effects.ImagesEffect, progress: Progress) -> effects.ImagesOutcome:
        """Make the effect true; what the host refuses comes back as `EffectFailed`."""
        statedir.make(self._images_dir)
        try:
            match effect:
                case effects.FetchImage():
                    return await self._fetch(effect, progress)
                case effects.BuildImage():
                    return await self._build(effect, progress)
                case effects.RemoveImage():
                    self._remove(effect.image_id)
                    return ImageRemoved(effect.key)
        except (FetchFailed, BuildFailed) as failure:
            log_tail = getattr(failure, "log_tail", "")
            return EffectFailed(effect.key, failure.reason, failure.hint, failure.retryable, log_tail)
        except ImageRejected as rejected:
            return EffectFailed(effect.key, f"image rejected: {rejected.reason}", rejected.hint, retryable=False)
        except OSError as failure:
            where = f": {failure.filename}" if failure.filename else ""
            return EffectFailed(effect.key, f"{failure.strerror or failure}{where}", "aetherscale doctor")

    async def _fetch(self, effect: effects.FetchImage, progress: Progress) -> effects.ImagesOutcome:
        # Here, since few starts of a node are followed by one, and http takes a tenth of the time of a start to import.
        from aetherscale.actors.images.fetch import fetch

        def say(done_bytes: int, total_bytes: int | None) -> None:
            progress(
                status(
                    "progress",
                    image_id=effect.image_id,
                    step="fetching",
                    done_bytes=done_bytes,
                    total_bytes=total_bytes,
                )
            )

        part = self._images_dir / f"{effect.image_id}.part"
        fetched = await fetch(effect.source, part, sha256=effect.sha256, size_cap_bytes=SIZE_CAP_BYTES, progress=say)
        header = await asyncio.to_thread(inspect, fetched.path)
        self._store(fetched.path, effect.image_id, header.format)
        return ImageStored(effect.key, header.format, fetched.sha256, fetched.size_bytes, header.virtual_size_bytes)

    async def _build(self, effect: effects.BuildImage, progress: Progress) -> effects.ImagesOutcome:
        from aetherscale.actors.images import tiny

        part = self._images_dir / f"{effect.image_id}.part"
        built = await tiny.build(
            part,
            self._cache_dir,
            lambda words: progress(status("progress", image_id=effect.image_id, step=words)),
        )
        self._store(part, effect.image_id, built.format)
        return ImageStored(effect.key, built.format, built.sha256, built.size_bytes, built.virtual_size_bytes)

    def _store(self, part: Path, image_id: str, image_format: str) -> None:
        part.chmod(READ_ONLY)
        part.rename(self._images_dir / f"{image_id}.{image_format}")
        descriptor = os.open(self._images_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remove(self, image_id: str) -> None:
        for path in self._images_dir.glob(f"{image_id}.*"):
            path.unlink()
