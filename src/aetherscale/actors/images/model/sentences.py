"""What happened to an image, and how it stands, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aetherscale.actors.images.model import events
from aetherscale.actors.images.model.decide import Image
from aetherscale.actors.images.model.events import ImageEvent
from aetherscale.kernel.descriptions import Description, Descriptions, consequence, request
from aetherscale.kernel.failures import told

_SHOWN_PACKAGES: Final = 5


def describe(image: Image | None, event: ImageEvent) -> Description:
    """An event in words; `image` is the state before it, None before the first."""
    match event:
        case events.ImageImportRequested():
            of = " of the catalogue" if event.catalogued else ""
            checked = _checked(event.sha256, event.checksums)
            return request(f"asked to import the image {event.name!r}{of} from {event.source}{checked}")
        case events.ImageBuildRequested():
            what = f"asked to build the image {event.name!r} from the recipe {event.recipe!r}"
            return request(", ".join([what, *_wishes(event)]))
        case events.ImageStored():
            size = _size(event.size_bytes)
            return consequence(
                f"it passed every check and was stored: {event.format}, {size}, SHA-256 {event.sha256[:12]}…"
            )
        case events.ImageUpdateRequested():
            checked = _checked(event.sha256, event.checksums)
            return request(f"asked for the newest file of it, from {event.source}{checked}")
        case events.ImageUnchanged():
            return consequence("what is published is what was here already")
        case events.ImageStepFailed():
            return consequence(told(event.step, event.attempt, event.retry_at, event.reason))
        case events.ImageUndone():
            return consequence("it had never been complete, so what had been stored of it was to be removed")
        case events.ImageDeleteRequested():
            return request("asked to delete it")
        case events.ImageDeleted():
            return consequence("it was removed from the host, and its name was free again")


def _checked(sha256: str | None, checksums: str | None) -> str:
    if checksums is not None:
        return f", with the checksum published at {checksums}"
    return f", SHA-256 {sha256[:12]}…" if sha256 else ", without a checksum"


def _wishes(event: events.ImageBuildRequested) -> Iterator[str]:
    if event.packages:
        shown = " ".join(event.packages[:_SHOWN_PACKAGES])
        more = len(event.packages) - _SHOWN_PACKAGES
        yield f"with {shown}" + (f" and {more} more" if more > 0 else "")
    if event.mirror is not None:
        yield f"from the mirror {event.mirror}"
    if event.size_gib is not None:
        yield f"of {event.size_gib} GiB"


def summarize(image: Image) -> str:
    """How the image stands now, and what is awaited."""
    if image.attempt.blocked:
        assert image.failure is not None
        return f"{image.failure.phase}: {image.failure.reason}"
    match image.phase:
        case "importing":
            return f"it is being imported from {image.source}"
        case "building":
            return f"it is being built from the recipe {image.recipe!r}"
        case "ready":
            if image.failure is not None:
                return f"VMs can be created from it, but it could not be updated: {image.failure.reason}"
            return "VMs can be created from it"
        case "updating":
            return f"VMs can be created from it, and a newer one is fetched from {image.source}"
        case "deleting":
            return "it is being removed from the host"
        case "failed":
            return "it failed"
        case "deleted":
            if image.rolled_back and image.failure:
                return f"it was never complete: {image.failure.phase}: {image.failure.reason}"
            return "nothing of it is left on the host"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:.1f} MiB" if size_bytes < 1024**3 else f"{size_bytes / 1024**3:.1f} GiB"


IMAGE_DESCRIPTIONS: Final[Descriptions[Image]] = Descriptions(describe, summarize)
