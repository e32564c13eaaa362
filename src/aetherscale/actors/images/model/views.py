"""An image as callers see it."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct, field

from aetherscale.actors.images.model.effects import FirstBoot, ImageFormat, ReadyChannel
from aetherscale.kernel.failures import Failure

ImagePhase = Literal["importing", "building", "ready", "updating", "deleting", "failed", "deleted"]
USABLE: Final[tuple[ImagePhase, ...]] = ("ready", "updating")
"""The phases in which VMs can be made of an image."""


class ImageView(Struct, frozen=True, rename="kebab"):
    """The view of an image."""

    id: str
    """The id of the image, 16 hex digits."""
    name: str
    """The name of the image, unique in its tenant until the image is deleted."""
    node: str
    """The name of the node that owns the image."""
    phase: ImagePhase
    """Where the image is in its life: `importing` or `building`, it is being made; `ready`, VMs can be made from it;
    `updating`, they can too, while a newer file is fetched; `deleting`, its files are being removed; `failed`, as
    `failure` says; `deleted`.
    """
    since: str
    """When the image entered its phase, RFC 3339 in UTC."""
    source: str
    """Where the image comes from: an absolute path on the node's host, a URL, or `recipe:` and the name of the recipe.
    """
    format: ImageFormat | None
    """The format of the image's file; null until it is stored."""
    sha256: str | None
    """The SHA-256 of the image's file, 64 hex digits; null until it is stored."""
    size_bytes: int | None
    """The size of the image's file, in bytes; null until it is stored."""
    virtual_size_bytes: int | None
    """The size of the disk that the image stands for, in bytes; null until it is stored."""
    ready: ReadyChannel
    """How guests of the image report that they are ready, as in the event `ImageImportRequested`."""
    first_boot: FirstBoot
    """How they take what is theirs at their first boot, as in the event `ImageImportRequested`."""
    failure: Failure | None
    """Why the image has failed, or the last update of one that is ready; null where nothing has."""
    revision: int
    """The version of the image's stream, which is the number of its events; it grows with each change."""
    requested_by: str | None
    """The actor whose command was carried out last (see `docs/nats.md`); null where there was none."""
    catalogued: bool = False
    """Whether it is of the catalogue: `image update` fetches what is there by then."""
    published: str | None = None
    """The checksum that the source had to have, like `sha512:0f…`; null where none was given or looked up."""
    user: str | None = None
    """The account of its guests that keys are for; null where that is not known."""
    labels: dict[str, str] = field(default_factory=dict)
    """The labels of the image: text by key."""
