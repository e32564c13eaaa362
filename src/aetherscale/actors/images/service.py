"""The query of images beyond aggregates: what the catalogue has. One for each process of the node."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from aetherscale.actors.images.model import events
from aetherscale.actors.images.model.catalogued import CatalogueView
from aetherscale.actors.images.model.commands import ImageOptions, ReadImageOptions, SearchImagesOptions
from aetherscale.actors.images.model.decide import Image
from aetherscale.actors.images.model.effects import ImageFormat
from aetherscale.actors.images.model.views import USABLE
from aetherscale.actors.images.ports import CATALOGUE, Catalogue
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.fault import Fault
from aetherscale.kernel.registry import Aggregate
from aetherscale.kernel.replies import Chunk, item, result, status
from aetherscale.runtime.component import Progress, World


class Reads(Protocol):
    """What a driver reads of its images. Raises `Fault` and OSError."""

    async def contents(self, image_id: str, image_format: ImageFormat, sha256: str) -> Any:
        """What is in an image, as a Struct for callers."""
        ...

    async def exported(
        self, image_id: str, image_format: ImageFormat, sha256: str, progress: Progress
    ) -> tuple[str, int]:
        """The SHA-256 of an image as a qcow2 file, and its size in bytes."""
        ...

    async def piece(self, image_id: str, image_format: ImageFormat, sha256: str, offset: int) -> bytes:
        """Bytes of that file from an offset on; none at its end."""
        ...


class ImagesService:
    """Answers the queries of images that ask the catalogue, or the files of images."""

    def __init__(self, world: World, driver: Reads) -> None:
        self._world = world
        self._driver = driver

    async def search(self, options: SearchImagesOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `search-images`: the entries by name, then how many, and what is wrong with the operator's."""
        catalogue: Catalogue = self._world.port(CATALOGUE)
        trouble = await catalogue.refresh()
        word, count = options.word.casefold(), 0
        for whose, entry in catalogue.entries():
            if word not in entry.name.casefold() and word not in entry.about.casefold():
                continue
            local = self._world.named(events.KIND, call.tenant, entry.name)
            state = local.state if local is not None else None
            count += 1
            yield item(
                {
                    "catalogue-image": CatalogueView(
                        name=entry.name,
                        about=entry.about,
                        catalogue=whose,
                        url=entry.url,
                        user=entry.user,
                        ready=entry.ready,
                        first_boot=entry.first_boot,
                        local=None if state is None else "failed" if state.attempt.blocked else state.phase,
                        source=state.source if state is not None else None,
                        is_of_catalogue=state is not None and state.catalogued,
                    )
                }
            )
        yield result({"count": count, "trouble": trouble})

    async def inspect(self, options: ImageOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `inspect-image`: its view, and what is in it. Raises `Refused`."""
        aggregate, file = self._file(options, call)
        with _told("the image cannot be looked into"):
            contents = await self._driver.contents(*file)
        yield result({**self._world.fields(events.KIND, aggregate), "contents": contents})

    async def export(self, options: ImageOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `export-image`: it is a qcow2 file now, of this size, which `read-image` reads."""
        aggregate, file = self._file(options, call)
        told: asyncio.Queue[Chunk] = asyncio.Queue()

        def progress(step: str, /, **fields: Any) -> None:
            told.put_nowait(status("progress", image_id=aggregate.id, step=step, **fields))

        with _told("the image cannot be exported"):
            work = asyncio.ensure_future(self._driver.exported(*file, progress))  # noqa: TID251 - ended below
            try:
                while not work.done():
                    telling = asyncio.ensure_future(told.get())  # noqa: TID251 - ended in the next line but one
                    await asyncio.wait({work, telling}, return_when=asyncio.FIRST_COMPLETED)
                    if not telling.cancel():
                        yield telling.result()
                sha256, size_bytes = await work
            finally:
                work.cancel()
        yield result(
            {"image-id": aggregate.id, "of": file[2], "format": "qcow2", "sha256": sha256, "size-bytes": size_bytes}
        )

    async def read(self, options: ReadImageOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `read-image`: a piece of that file, in base64; an empty one at its end."""
        aggregate, file = self._file(options, call)
        if file[2] != options.sha256:
            raise Refused(
                Reason.CONFLICT,
                f"the image {aggregate.state.name!r} has been updated since its export began",
                field="sha256",
                remedy=("begin the export again",),
            )
        with _told("the image cannot be read"):
            piece = await self._driver.piece(*file, options.offset)
        yield result({"image-id": aggregate.id, "data": base64.b64encode(piece).decode()})

    def _file(self, options: Any, call: Call) -> tuple[Aggregate[Image], tuple[str, ImageFormat, str]]:
        """An image that is whole, and which file is its. Raises `Refused` (not found, conflict)."""
        aggregate = self._world.referred(events.KIND, options, call)
        image: Image = aggregate.state
        if image.phase not in USABLE or image.format is None or image.sha256 is None:
            raise Refused(
                Reason.CONFLICT,
                f"the image {image.name!r} is not ready but {image.phase}",
                field="image",
                retryable=image.phase in ("importing", "building"),
                remedy=Task("image", "show", image.name),
            )
        return aggregate, (image.id, image.format, image.sha256)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Raises `Refused` (internal) for what the host cannot do."""
    try:
        yield
    except Fault as fault:
        raise Refused(Reason.INTERNAL, f"{what}: {fault.reason}", remedy=fault.remedy) from fault
    except OSError as error:
        raise Refused(Reason.INTERNAL, f"{what}: {error.strerror or error}", remedy=Task("doctor")) from error
