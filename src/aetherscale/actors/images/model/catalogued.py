"""An entry of a catalogue: an image that can be fetched by its name. Pure data."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from aetherscale.actors.images.model.effects import FirstBoot, ReadyChannel
from aetherscale.actors.images.model.views import ImagePhase


class Entry(Struct, frozen=True):
    """An image that can be fetched. One without `url` is not for the architecture of this host."""

    name: str
    about: str
    """What it is, in one line."""
    url: str | None
    checksums: str | None = None
    """Where its checksum is published; None where `sha256` has it."""
    sha256: str | None = None
    user: str | None = None
    """The account of its guests that keys are for."""
    ready: ReadyChannel = "none"
    first_boot: FirstBoot = "none"


class CatalogueView(Struct, frozen=True, rename="kebab"):
    """An entry of the catalogue as callers see it."""

    name: str
    """The name that the image is fetched by, and that it has then."""
    about: str
    """What it is, in one line."""
    catalogue: Literal["shipped", "own"]
    """Whose entry it is: `shipped`, that of this program; `own`, that of the setting `image-catalogue`."""
    url: str | None
    """Where the image is; null where there is none for the architecture of the node's host."""
    user: str | None
    """The account of its guests that keys are for; null where that is not known."""
    ready: ReadyChannel
    """How its guests report that they are ready, as in the event `ImageImportRequested`."""
    first_boot: FirstBoot
    """How they take what is theirs at their first boot, as in the event `ImageImportRequested`."""
    local: ImagePhase | None
    """The phase of the image that has this name here, which VMs are made of; null where none has."""
    source: str | None
    """Where that image comes from, which may be somewhere else than this entry; null where there is none."""
    is_of_catalogue: bool
    """Whether that image was fetched by this name from a catalogue."""
