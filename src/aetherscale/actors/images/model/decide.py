"""The life of an image.

    importing, building ──ImageStored──▶ ready ──ImageDeleteRequested──▶ deleting ──ImageDeleted──▶ deleted
          └── ImageStepFailed (for good), ImageUndone ──────────────────────▲

An image that could not be brought in is undone: its name is free again. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.images.model import effects, events
from aetherscale.actors.images.model.commands import BuildImage, DeleteImage, ImagesCommand, ImportImage
from aetherscale.actors.images.model.effects import ImageFormat, ImagesEffect, ImagesOutcome, ReadyChannel
from aetherscale.actors.images.model.events import ImageEvent
from aetherscale.actors.images.model.views import ImagePhase
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.times import SECOND_US, from_rfc3339, to_rfc3339

ImagesMessage = ImagesCommand | ImagesOutcome

ATTEMPT_LIMIT: Final = 3
BUILT_READY: Final[ReadyChannel] = "channel"
"""Guests of our own recipes have our ready channel."""


class ImageFailure(Struct, frozen=True):
    """Why the image failed, for its view."""

    phase: str
    reason: str
    hint: str
    log_tail: str


class Image(Struct, frozen=True):
    """One image, as its events add up."""

    id: str
    name: str
    phase: ImagePhase
    phase_since_us: int
    source: str
    ready_channel: ReadyChannel
    expected_sha256: str | None = None
    recipe: str | None = None
    format: ImageFormat | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    virtual_size_bytes: int | None = None
    undone: bool = False
    stuck: bool = False
    """The host has refused the step for good: nothing is owed until somebody asks again."""
    attempt: int = 1
    not_before_us: int = 0
    failure: ImageFailure | None = None


def decide(image: Image | None, message: ImagesMessage, at_us: int) -> Sequence[ImageEvent]:
    """The events that follow. Raises `Refused` for callers only."""
    if isinstance(message, ImportImage | BuildImage):
        if image is not None:
            raise Refused(409, f"the image {message.image_id} exists already")
        if isinstance(message, BuildImage):
            return (events.ImageBuildRequested(message.image_id, message.name, message.recipe),)
        return (
            events.ImageImportRequested(
                message.image_id, message.name, message.source, message.sha256, message.ready_channel
            ),
        )
    if isinstance(message, DeleteImage):
        return _delete(image, message)
    if image is None or image.phase == "deleted":
        return ()
    match message:
        case effects.ImageStored():
            return (events.ImageStored(message.format, message.sha256, message.size_bytes, message.virtual_size_bytes),)
        case effects.ImageRemoved():
            return (events.ImageDeleted(),)
        case effects.EffectFailed():
            return _failed(image, message, at_us)


def _delete(image: Image | None, command: DeleteImage) -> Sequence[ImageEvent]:
    if image is None or image.phase == "deleted":
        raise Refused(404, "no such image: it has been deleted" if image else "no such image")
    if image.phase == "deleting" and not image.stuck:
        return ()
    if command.used_by:
        names = [user.name for user in command.used_by]
        shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        nouns = {user.noun for user in command.used_by}
        noun = nouns.pop() if len(nouns) == 1 else "object"
        raise Refused(
            409,
            f"the image {image.name!r} is in use by {len(names)} {noun}(s): {shown}",
            hint=f"aetherscale {command.used_by[0].kind} delete {names[0]}",
            details={"used-by": names[:100]},
        )
    return (events.ImageDeleteRequested(),)


def _failed(image: Image, failed: effects.EffectFailed, at_us: int) -> Sequence[ImageEvent]:
    again = failed.retryable and image.attempt < ATTEMPT_LIMIT
    event = events.ImageStepFailed(
        step=image.phase,
        attempt=image.attempt,
        reason=failed.reason,
        hint=failed.hint,
        log_tail=failed.log_tail,
        retry_at=to_rfc3339(at_us + 2 ** (image.attempt - 1) * SECOND_US) if again else None,
    )
    undo = not again and image.phase in ("importing", "building")
    return (event, events.ImageUndone()) if undo else (event,)


def evolve(image: Image | None, event: ImageEvent, at_us: int) -> Image:
    """The image after an event; never fails on a stream that `decide` has written."""
    match event:
        case events.ImageImportRequested():
            return Image(
                id=event.image_id,
                name=event.name,
                phase="importing",
                phase_since_us=at_us,
                source=event.source,
                ready_channel=event.ready_channel,
                expected_sha256=event.sha256,
            )
        case events.ImageBuildRequested():
            return Image(
                id=event.image_id,
                name=event.name,
                phase="building",
                phase_since_us=at_us,
                source=f"recipe:{event.recipe}",
                ready_channel=BUILT_READY,
                recipe=event.recipe,
            )
        case _:
            assert image is not None, f"an image's stream begins with its request, not with {type(event).__name__}"
            after = _evolve(image, event)
            # One that cannot be brought on is shown as failed, whatever it was on the way to.
            moved = (after.phase, after.stuck) != (image.phase, image.stuck)
            return replace(after, phase_since_us=at_us) if moved else after


def _evolve(
    image: Image,
    event: events.ImageStored
    | events.ImageStepFailed
    | events.ImageUndone
    | events.ImageDeleteRequested
    | events.ImageDeleted,
) -> Image:
    match event:
        case events.ImageStored():
            return replace(
                image,
                phase="ready",
                format=event.format,
                sha256=event.sha256,
                size_bytes=event.size_bytes,
                virtual_size_bytes=event.virtual_size_bytes,
                attempt=1,
                not_before_us=0,
            )
        case events.ImageStepFailed():
            if event.retry_at is not None:
                return replace(image, attempt=event.attempt + 1, not_before_us=from_rfc3339(event.retry_at))
            failure = ImageFailure(event.step, event.reason, event.hint, event.log_tail)
            return replace(image, failure=image.failure or failure, stuck=True)
        case events.ImageUndone():
            return replace(image, phase="deleting", undone=True, stuck=False, attempt=1, not_before_us=0)
        case events.ImageDeleteRequested():
            return replace(image, phase="deleting", stuck=False, failure=None, attempt=1, not_before_us=0)
        case events.ImageDeleted():
            return replace(image, phase="deleted")


def pending(image: Image) -> ImagesEffect | None:
    """The one piece of work that is pending on the host now."""
    if image.stuck:
        return None
    match image.phase:
        case "importing":
            key = f"fetch-{image.attempt}"
            return effects.FetchImage(
                key, image.id, image.source, image.expected_sha256, not_before_us=image.not_before_us
            )
        case "building":
            assert image.recipe is not None
            return effects.BuildImage(
                f"build-{image.attempt}", image.id, image.recipe, not_before_us=image.not_before_us
            )
        case "deleting":
            return effects.RemoveImage(
                f"remove-{image.attempt}",
                image.id,
                image.source,
                undone=image.undone,
                not_before_us=image.not_before_us,
            )
        case _:
            return None


IMAGES: Final[Decider[Image, ImagesMessage, ImageEvent, ImagesEffect]] = Decider(decide, evolve, pending)
