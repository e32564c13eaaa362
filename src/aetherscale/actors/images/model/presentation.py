"""How an image looks from outside, and when a task has come to its end. Pure."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Final

from aetherscale.actors.images.model import events
from aetherscale.actors.images.model.decide import Image, evolve
from aetherscale.actors.images.model.events import ImageEvent
from aetherscale.actors.images.model.sentences import IMAGE_DESCRIPTIONS
from aetherscale.actors.images.model.views import USABLE, ImageView
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.registry import Kind
from aetherscale.kernel.replies import Chunk, status
from aetherscale.kernel.reservations import Holding, Name
from aetherscale.kernel.times import to_rfc3339


def view(image: Image, node: str, revision: int, requested_by: str | None = None) -> ImageView:
    """The view of an image that is kept on `node`; `revision` is the version of its stream."""
    return ImageView(
        id=image.id,
        name=image.name,
        node=node,
        phase="failed" if image.attempt.blocked else image.phase,
        since=to_rfc3339(image.phase_since_us),
        source=image.source,
        format=image.format,
        sha256=image.sha256,
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        ready=image.ready_channel,
        first_boot=image.first_boot,
        failure=image.failure,
        revision=revision,
        requested_by=requested_by,
        catalogued=image.catalogued,
        published=image.published,
        user=image.user,
        labels=image.labels,
    )


def holds(image: Image) -> Sequence[Holding]:
    """What an image holds: its name, until it is deleted."""
    return () if image.phase == "deleted" else (Name(events.KIND, image.name),)


def announce(image: Image, event: ImageEvent) -> Chunk | None:
    """The status that a waiting caller is told of an event, if any."""
    match event:
        case events.ImageImportRequested():
            return status("importing", image_id=image.id, name=image.name)
        case events.ImageBuildRequested():
            return status("building", image_id=image.id, name=image.name)
        case events.ImageUpdateRequested():
            return status("updating", image_id=image.id, name=image.name)
        case events.ImageStepFailed() if event.retry_at is not None:
            return status("retrying", image_id=image.id, reason=event.reason, not_before=event.retry_at)
        case events.ImageUndone():
            return status("undoing", image_id=image.id)
        case events.ImageDeleteRequested():
            return status("deleting", image_id=image.id)
        case _:
            return None


def is_deleted(image: Image, _: object = None) -> bool:
    """Whether a deletion has come to its end; raises `Refused` where it is a bad one."""
    if image.attempt.blocked:
        raise _failed(image, f"the image {image.name!r} could not be deleted")
    return image.phase == "deleted"


def is_ready(image: Image, _: object = None) -> bool:
    """Whether an import or a build has come to its end; raises `Refused` where it is a bad one."""
    if image.rolled_back or image.attempt.blocked:
        if image.phase == "deleted" or image.attempt.blocked:
            raise _failed(image, "the image could not be " + ("imported" if image.recipe is None else "built"))
        return False
    if image.phase in ("deleting", "deleted"):
        raise Refused(Reason.CONFLICT, f"the image {image.name!r} was deleted before it was ready")
    return image.phase in USABLE


def is_updated(image: Image, _: object = None) -> bool:
    """Whether an update has come to its end; raises `Refused` where it is a bad one."""
    if image.phase in ("deleting", "deleted"):
        raise Refused(Reason.CONFLICT, f"the image {image.name!r} was deleted before it was updated")
    if image.phase == "ready" and image.failure is not None:
        raise _failed(image, "the image could not be updated, and is what it was")
    return image.phase == "ready"


def _failed(image: Image, what: str) -> Refused:
    failure = image.failure
    assert failure is not None
    where = "" if failure.phase in ("importing", "updating") else f"{failure.phase}: "
    return failure.refused(f"{what}: {where}{failure.reason}", image_id=image.id)


IMAGE_KIND: Final[Kind[Image]] = Kind(
    events.KIND, Image, typing.get_args(ImageEvent), evolve, view, IMAGE_DESCRIPTIONS, version=7
)
