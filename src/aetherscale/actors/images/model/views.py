"""An image as callers see it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from aetherscale.actors.images.model.effects import ImageFormat, ReadyChannel

ImagePhase = Literal["importing", "building", "ready", "deleting", "failed", "deleted"]


class ImageFailureView(Struct, frozen=True, rename="kebab"):
    """Why an image failed: in which step, what happened, and what to do."""

    phase: str
    reason: str
    hint: str
    log_tail: str


class ImageView(Struct, frozen=True, rename="kebab"):
    """The view of an image. Sizes are in bytes: `size` of the file, `virtual-size` of the disk in it."""

    id: str
    name: str
    node: str
    phase: ImagePhase
    since: str
    source: str
    format: ImageFormat | None
    sha256: str | None
    size_bytes: int | None
    virtual_size_bytes: int | None
    ready: ReadyChannel
    failure: ImageFailureView | None
    revision: int
    requested_by: str | None
    """Whose command was carried out last: see the actors in `docs/nats.md`."""
