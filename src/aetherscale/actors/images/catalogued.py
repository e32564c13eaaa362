"""Images of the catalogue: from a name to the command that brings the image in, or its newest file."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.images.model import commands, events
from aetherscale.actors.images.model.catalogued import Entry
from aetherscale.actors.images.model.commands import FetchImageOptions, ImageOptions
from aetherscale.actors.images.ports import CATALOGUE, Catalogue
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.runtime.component import World

_SEARCH: Final = Task("image", "search")


def fetched(options: FetchImageOptions, call: Call, image_id: str, world: World) -> commands.ImportImage:
    """The command that brings in an image of the catalogue. Raises `Refused` (not found, conflict)."""
    entry = _entry(world, options.name, "name")
    world.require_free(events.KIND, call.tenant, entry.name, image_id)
    assert entry.url is not None
    return commands.ImportImage(
        image_id,
        entry.name,
        entry.url,
        entry.sha256,
        entry.ready,
        entry.first_boot,
        catalogued=True,
        checksums=entry.checksums,
        user=entry.user,
        labels=options.labels,
    )


def updated(options: ImageOptions, call: Call, image_id: str, world: World) -> commands.UpdateImage:
    """The command that fetches the newest file of an image of the catalogue. Raises `Refused`."""
    image = world.find(events.KIND, call.tenant, image_id).state
    if not image.catalogued:
        raise Refused(
            Reason.CONFLICT,
            f"the image {image.name!r} is not of the catalogue: it comes from {image.source}",
            field="image",
            remedy=("import or build it again under another name, or: ", _SEARCH),
        )
    entry = _entry(world, image.name, "image")
    assert entry.url is not None
    return commands.UpdateImage(image_id, entry.url, entry.checksums, entry.sha256)


def _entry(world: World, name: str, field: str) -> Entry:
    catalogue: Catalogue = world.port(CATALOGUE)
    entry = catalogue.find(name)
    if entry is None:
        raise Refused(
            Reason.NOT_FOUND,
            f"the catalogue has no image {name!r} for this host",
            field=field,
            remedy=_SEARCH,
        )
    return entry
