"""The images of this host: one file each below one directory, checked before anything else reads it.

<images>/<image-id>.<format>   a stored image: see `store.py`
<images>/<image-id>.part*      one that is on its way: see `arrival.py`
<images>/kept/                 what has arrived of downloads that were given up
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from aetherscale import incoming, shortage, statedir
from aetherscale.actors.images.catalogue.catalogues import Catalogues
from aetherscale.actors.images.fetching import kept
from aetherscale.actors.images.fetching.shares import Shares
from aetherscale.actors.images.files.qcow2 import write_overlay
from aetherscale.actors.images.files.rejected import ImageRejected
from aetherscale.actors.images.model import effects
from aetherscale.actors.images.model.effects import ImageFormat, ImageRemoved, ImageStored
from aetherscale.actors.images.store import Store
from aetherscale.identifiers import now_us
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress, Report
from aetherscale.settings import Settings

if TYPE_CHECKING:
    from aetherscale.actors.images.exporting import Exports
    from aetherscale.actors.images.fetching.addresses import Network

MOST_AT_ONCE: Final = 16
"""Imports at once; the others wait for their turn."""
MOST_OF_ONE_TENANT: Final = 8


class Imports(Struct, frozen=True):
    """From where images may be imported: files below `directories`, and networks beside the public ones."""

    directories: tuple[Path, ...] = ()
    networks: tuple[Network, ...] = ()


class HostImages:
    """Performs the effects of the images component, below one state directory."""

    def __init__(
        self, state_dir: Path, cache_dir: Path, imports: Imports | None = None, catalogue: Catalogues | None = None
    ) -> None:
        self._state_dir = state_dir
        self._images_dir = state_dir / "images"
        self._store = Store(self._images_dir)
        self._cache_dir = cache_dir
        self.catalogue = catalogue or Catalogues()
        self._imports = imports or Imports()
        self._shares = Shares(MOST_AT_ONCE, MOST_OF_ONE_TENANT)

    @classmethod
    def on(cls, settings: Settings) -> HostImages:
        """The images of the node with these settings. Raises `Refused` for a catalogue that is none."""
        from ipaddress import ip_network

        incoming.prepare(settings.state_dir, settings.node)
        networks = settings.image_networks
        if settings.simulated and not networks:
            # A node for trials and tests, whose servers are on the same host.
            networks = (ip_network("0.0.0.0/0"), ip_network("::/0"))
        catalogue = Catalogues(settings.image_catalogue, settings.cache_dir, networks)
        catalogue.load()
        return cls(settings.state_dir, settings.cache_dir, Imports(settings.image_dirs, networks), catalogue)

    async def start(self, report: Report[Any]) -> None:
        """As in `Driver`: nothing happens to images by itself."""
        self.catalogue.start()

    async def reconcile(self, expected: Mapping[str, Any]) -> None:
        """As in `Driver`: what is missing is noticed by those who use it."""

    async def close(self) -> None:
        """As in `Driver`."""
        await self.catalogue.close()

    def path(self, image_id: str, image_format: Literal["qcow2", "raw"], sha256: str | None = None) -> Path:
        """As in `ImageFiles`."""
        return self._store.path(image_id, image_format, sha256)

    async def contents(self, image_id: str, image_format: ImageFormat, sha256: str) -> Any:
        """As in `Reads`."""
        from aetherscale.actors.images.files.contents import look_into

        return await asyncio.to_thread(look_into, self._store.path(image_id, image_format, sha256))

    async def exported(
        self, image_id: str, image_format: ImageFormat, sha256: str, progress: Progress
    ) -> tuple[str, int]:
        """As in `Reads`."""
        found = await self._exports.prepare(image_id, image_format, sha256, now_us() / 1e6, progress)
        return found.sha256, found.size_bytes

    async def piece(self, image_id: str, image_format: ImageFormat, sha256: str, offset: int) -> bytes:
        """As in `Reads`."""
        return await asyncio.to_thread(self._exports.piece, image_id, image_format, sha256, offset)

    @cached_property
    def _exports(self) -> Exports:
        from aetherscale.actors.images.exporting import Exports

        return Exports(self._store, self._cache_dir)

    def write_overlay(self, path: Path, base_format: str, virtual_size_bytes: int, base_name: str) -> None:
        """As in `ImageFiles`."""
        write_overlay(path, base_format, virtual_size_bytes, base_name)

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
                    self._remove(effect)
                    return ImageRemoved(effect.key)
        except ImageRejected as rejected:
            return EffectFailed(effect.key, f"image rejected: {rejected.reason}", rejected.remedy, retryable=False)
        except Fault as fault:
            return EffectFailed.by(effect.key, fault)
        except OSError as failure:
            where = f": {failure.filename}" if failure.filename else ""
            return EffectFailed(
                effect.key,
                f"{failure.strerror or failure}{where}",
                shortage.hint_of(failure.errno) or "aetherscale doctor",
            )

    async def _fetch(self, effect: effects.FetchImage, progress: Progress) -> effects.ImagesOutcome:
        def wait(at_once: int) -> None:
            progress(f"waiting: {at_once} other imports are under way")

        async with self._shares.turn(effect.tenant, wait):
            return await self._fetch_now(effect, progress)

    async def _fetch_now(self, effect: effects.FetchImage, progress: Progress) -> effects.ImagesOutcome:
        # Here, since few starts of a node are followed by one, and http takes a tenth of the time of a start to import.
        from aetherscale.actors.images.arrival import Ways, bring_in, stored_before
        from aetherscale.actors.images.fetching.copying import Places
        from aetherscale.actors.images.fetching.transfer import Limits

        now_s = now_us() / 1e6
        self._store.sweep(now_s)
        stored = self._store.stored(effect.image_id)
        if stored is not None and effect.replaces is None:  # by a process that ended before it could say so
            answer: effects.ImagesOutcome = await stored_before(effect, stored)
            self._store.tidy(effect.image_id)
        else:
            kept.sweep(self._images_dir, now_s)
            incoming.sweep(self._state_dir, now_s)
            kept.take(self._store.part(effect.image_id), effect.tenant, effect.source)
            ways = Ways(
                Places(self._state_dir, self._imports.directories),
                Limits(networks=self._imports.networks),
                lambda: self._shares.is_crowded,
            )
            try:
                answer = await bring_in(effect, self._store, ways, progress)
            except BaseException:
                if effect.replaces is not None:
                    # No removal follows, as it does for an image that never was: what has come waits with the others.
                    kept.keep(self._store.part(effect.image_id), effect.tenant, effect.source, now_s)
                    self._store.tidy(effect.image_id)
                raise
        incoming.forget(self._state_dir, effect.source)
        return answer

    async def _build(self, effect: effects.BuildImage, progress: Progress) -> effects.ImagesOutcome:
        from aetherscale.actors.images.building import recipes

        part = self._store.part(effect.image_id)
        built = await recipes.build(part, self._cache_dir, progress, effect, now_s=now_us() / 1e6)
        self._store.put(part, effect.image_id, built.format, built.sha256)
        return ImageStored(effect.key, built.format, built.sha256, built.size_bytes, built.virtual_size_bytes)

    def _remove(self, effect: effects.RemoveImage) -> None:
        if effect.rolled_back:
            kept.keep(self._store.part(effect.image_id), effect.tenant, effect.source, now_us() / 1e6)
        incoming.forget(self._state_dir, effect.source)
        self._store.remove(effect.image_id)
