"""The life of an image.

    importing, building ──ImageStored──▶ ready ──ImageDeleteRequested──▶ deleting ──ImageDeleted──▶ deleted
          └── ImageStepFailed (for good), ImageUndone ──────────────────────▲
    ready ──ImageUpdateRequested──▶ updating ──ImageStored, ImageUnchanged, ImageStepFailed (for good)──▶ ready

An image that could not be brought in is rolled back: its name is free again. One that could not be updated stays what
it was. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from aetherscale.actors.images.model import effects, events
from aetherscale.actors.images.model.commands import BuildImage, DeleteImage, ImagesCommand, ImportImage, UpdateImage
from aetherscale.actors.images.model.effects import FirstBoot, ImageFormat, ImagesEffect, ImagesOutcome, ReadyChannel
from aetherscale.actors.images.model.events import ImageEvent
from aetherscale.actors.images.model.recipes import first_boot, first_boot_of_before, ready_channel
from aetherscale.actors.images.model.views import ImagePhase
from aetherscale.kernel.attempts import FIRST, Attempt
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.failures import EffectFailed, Failure
from aetherscale.kernel.reservations import in_use

ImagesMessage = ImagesCommand | ImagesOutcome


class Image(Struct, frozen=True):
    """One image, as its events add up."""

    id: str
    name: str
    phase: ImagePhase
    phase_since_us: int
    source: str
    ready_channel: ReadyChannel
    first_boot: FirstBoot = "none"
    expected_sha256: str | None = None
    recipe: str | None = None
    packages: tuple[str, ...] = ()
    mirror: str | None = None
    size_gib: int | None = None
    format: ImageFormat | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    virtual_size_bytes: int | None = None
    catalogued: bool = False
    checksums: str | None = None
    published: str | None = None
    """The checksum that was published for the file that is there."""
    user: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    rolled_back: bool = False
    """Whether it could not be brought in, so that what was stored of it is removed."""
    attempt: Attempt = FIRST
    """Which attempt at the step that is pending now; one that is blocked is shown as failed."""
    failure: Failure | None = None


def decide(image: Image | None, message: ImagesMessage, at_us: int) -> Sequence[ImageEvent]:
    """The events that follow. Raises `Refused` for callers only."""
    if isinstance(message, ImportImage | BuildImage):
        if image is not None:
            raise Refused(Reason.CONFLICT, f"the image {message.image_id} exists already")
        if isinstance(message, BuildImage):
            return (_build_requested(message),)
        return (_import_requested(message),)
    if isinstance(message, UpdateImage):
        return _update(image, message)
    if isinstance(message, DeleteImage):
        return _delete(image, message)
    if image is None or image.phase == "deleted":
        return ()
    match message:
        case effects.ImageStored():
            return (
                events.ImageStored(
                    message.format, message.sha256, message.size_bytes, message.virtual_size_bytes, message.published
                ),
            )
        case effects.ImageUnchanged():
            return (events.ImageUnchanged(),)
        case effects.ImageRemoved():
            return (events.ImageDeleted(),)
        case EffectFailed():
            return _failed(image, message, at_us)


def _import_requested(command: ImportImage) -> events.ImageImportRequested:
    return events.ImageImportRequested(
        command.image_id,
        command.name,
        command.source,
        command.sha256,
        command.ready_channel,
        command.first_boot,
        command.catalogued,
        command.checksums,
        command.user,
        command.labels,
    )


def _build_requested(command: BuildImage) -> events.ImageBuildRequested:
    return events.ImageBuildRequested(
        command.image_id,
        command.name,
        command.recipe,
        command.packages,
        command.mirror,
        command.size_gib,
        command.labels,
        first_boot(command.recipe),
    )


def _update(image: Image | None, command: UpdateImage) -> Sequence[ImageEvent]:
    if image is None or image.phase == "deleted":
        raise Refused(Reason.NOT_FOUND, "no such image: it has been deleted" if image else "no such image")
    if image.phase == "updating":
        return ()
    if image.phase != "ready":
        raise Refused(
            Reason.CONFLICT,
            f"the image {image.name!r} is not ready but {image.phase}",
            retryable=image.phase in ("importing", "building"),
            remedy=Task("image", "show", image.name),
        )
    return (events.ImageUpdateRequested(command.source, command.checksums, command.sha256),)


def _delete(image: Image | None, command: DeleteImage) -> Sequence[ImageEvent]:
    if image is None or image.phase == "deleted":
        raise Refused(Reason.NOT_FOUND, "no such image: it has been deleted" if image else "no such image")
    if image.phase == "deleting" and not image.attempt.blocked:
        return ()
    if command.used_by:
        raise in_use(f"the image {image.name!r}", command.used_by)
    return (events.ImageDeleteRequested(),)


def _failed(image: Image, failed: EffectFailed, at_us: int) -> Sequence[ImageEvent]:
    retry_at = image.attempt.retry_at(at_us, retryable=failed.retryable)
    event = events.ImageStepFailed(
        step=image.phase,
        attempt=image.attempt.number,
        reason=failed.reason,
        hint=failed.hint,
        log_tail=failed.log_tail,
        retry_at=retry_at,
    )
    undo = retry_at is None and image.phase in ("importing", "building")
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
                first_boot=event.first_boot,
                expected_sha256=event.sha256,
                catalogued=event.catalogued,
                checksums=event.checksums,
                user=event.user,
                labels=event.labels,
            )
        case events.ImageBuildRequested():
            return Image(
                id=event.image_id,
                name=event.name,
                phase="building",
                phase_since_us=at_us,
                source=f"recipe:{event.recipe}",
                ready_channel=ready_channel(event.recipe),
                first_boot=event.first_boot or first_boot_of_before(event.recipe),
                recipe=event.recipe,
                packages=event.packages,
                mirror=event.mirror,
                size_gib=event.size_gib,
                labels=event.labels,
            )
        case _:
            assert image is not None, f"an image's stream begins with its request, not with {type(event).__name__}"
            after = _evolve(image, event)
            # One that cannot be brought on is shown as failed, whatever it was on the way to.
            moved = (after.phase, after.attempt.blocked) != (image.phase, image.attempt.blocked)
            return replace(after, phase_since_us=at_us) if moved else after


def _evolve(
    image: Image,
    event: events.ImageStored
    | events.ImageUpdateRequested
    | events.ImageUnchanged
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
                published=event.published,
                attempt=FIRST,
            )
        case events.ImageUpdateRequested():
            return replace(
                image,
                phase="updating",
                source=event.source,
                checksums=event.checksums,
                expected_sha256=event.sha256,
                failure=None,
                attempt=FIRST,
            )
        case events.ImageUnchanged():
            return replace(image, phase="ready", attempt=FIRST)
        case events.ImageStepFailed():
            attempt = image.attempt.after_failure(event.attempt, event.retry_at)
            if event.retry_at is not None:
                return replace(image, attempt=attempt)
            failure = Failure(event.step, event.reason, event.hint, event.log_tail)
            if image.phase == "updating":
                # VMs are made of what was there before.
                return replace(image, phase="ready", failure=failure, attempt=FIRST)
            # The first failure is the reason; that what was stored could not be removed either comes after it.
            return replace(image, failure=image.failure or failure, attempt=attempt)
        case events.ImageUndone():
            return replace(image, phase="deleting", rolled_back=True, attempt=FIRST)
        case events.ImageDeleteRequested():
            return replace(image, phase="deleting", failure=None, attempt=FIRST)
        case events.ImageDeleted():
            return replace(image, phase="deleted")


def pending(image: Image) -> ImagesEffect | None:
    """The one piece of work that is pending on the host now."""
    attempt = image.attempt
    if attempt.blocked:
        return None
    match image.phase:
        case "importing":
            return effects.FetchImage(
                f"fetch-{attempt.number}",
                image.id,
                image.source,
                image.expected_sha256,
                checksums=image.checksums,
                not_before_us=attempt.not_before_us,
            )
        case "updating":
            return effects.FetchImage(
                f"update-{attempt.number}",
                image.id,
                image.source,
                image.expected_sha256,
                checksums=image.checksums,
                known=image.published,
                replaces=image.sha256,
                not_before_us=attempt.not_before_us,
            )
        case "building":
            assert image.recipe is not None
            return effects.BuildImage(
                f"build-{attempt.number}",
                image.id,
                image.recipe,
                image.packages,
                image.mirror,
                image.size_gib,
                not_before_us=attempt.not_before_us,
            )
        case "deleting":
            return effects.RemoveImage(
                f"remove-{attempt.number}",
                image.id,
                image.source,
                rolled_back=image.rolled_back,
                not_before_us=attempt.not_before_us,
            )
        case _:
            return None


IMAGES: Final[Decider[Image, ImagesMessage, ImageEvent, ImagesEffect]] = Decider(decide, evolve, pending)
