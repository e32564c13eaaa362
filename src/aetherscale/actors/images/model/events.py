"""What has happened to an image. Kept for ever: change a shape only with a new schema version."""

from __future__ import annotations

from aetherscale.actors.images.model.commands import Recipe
from aetherscale.actors.images.model.effects import ImageFormat, ReadyChannel
from aetherscale.kernel.messages import Event

KIND = "image"
"""The kind of an image's stream."""


class ImageImportRequested(Event, frozen=True):
    """Somebody asked to bring an image in. The source is without any password that its URL had."""

    image_id: str
    name: str
    source: str
    sha256: str | None
    ready_channel: ReadyChannel


class ImageBuildRequested(Event, frozen=True):
    """Somebody asked to make an image."""

    image_id: str
    name: str
    recipe: Recipe


class ImageStored(Event, frozen=True):
    """The image is in its place and has passed every check."""

    format: ImageFormat
    sha256: str
    size_bytes: int
    virtual_size_bytes: int


class ImageStepFailed(Event, frozen=True):
    """The host could not do what was owed. `retry_at` (RFC 3339) is absent where it is not tried again."""

    step: str
    attempt: int
    reason: str
    hint: str
    log_tail: str
    retry_at: str | None


class ImageUndone(Event, frozen=True):
    """The image was never complete, and what was stored of it is removed."""


class ImageDeleteRequested(Event, frozen=True):
    """Somebody asked to delete it."""


class ImageDeleted(Event, frozen=True):
    """Nothing of it is left on the host."""


ImageEvent = (
    ImageImportRequested
    | ImageBuildRequested
    | ImageStored
    | ImageStepFailed
    | ImageUndone
    | ImageDeleteRequested
    | ImageDeleted
)
