"""The query of images beyond aggregates: what the catalogue has. One for each process of the node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aetherscale.actors.images.model import events
from aetherscale.actors.images.model.catalogued import CatalogueView
from aetherscale.actors.images.model.commands import SearchImagesOptions
from aetherscale.actors.images.ports import CATALOGUE, Catalogue
from aetherscale.kernel.calls import Call
from aetherscale.kernel.replies import Chunk, item, result
from aetherscale.runtime.component import World


class ImagesService:
    """Answers the queries of images that ask the catalogue."""

    def __init__(self, world: World, driver: Any) -> None:
        self._world = world

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
