"""What has happened to an image. Kept for ever: change a shape only with a new schema version."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from aetherscale.actors.images.model.effects import FirstBoot, ImageFormat, ReadyChannel
from aetherscale.actors.images.model.recipes import Recipe
from aetherscale.kernel.messages import Event

KIND = "image"
"""The kind of an image's stream."""


class ImageImportRequested(Event, frozen=True):
    """A caller requested the import of an image, or one that is in the catalogue was fetched for him."""

    SCHEMA: ClassVar[int] = 3
    ONLY_ADDED: ClassVar[bool] = True

    image_id: str
    """The id of the new image, 16 hex digits."""
    name: str
    """The name of the image."""
    source: str
    """Where the image comes from: an absolute path on the node's host, or an http or https URL without a password."""
    sha256: str | None
    """The SHA-256 that the caller expects of the source, 64 hex digits; null where the caller gave none."""
    ready_channel: ReadyChannel
    """How guests of the image report that they are ready: `agent`, through the QEMU guest agent; `channel`, by the line
    `ready` on the virtio port `org.aetherscale.ready.0`; `none`, not at all.
    """
    first_boot: FirstBoot = "none"
    """How guests of the image take what is theirs at their first boot: `credentials`, as credentials of systemd, which
    are keys; `aetherscale`, by these and by units of ours, which run an init script too; `tiny`, as those of the recipe
    `tiny`, which run an init script; `cloud-init`, by cloud-init from a disk; or `none`, not at all. Not in schema 1.
    """
    catalogued: bool = False
    """Whether the image was asked for by its name in the catalogue, where the source is from. Not in schemas 1 and 2.
    """
    checksums: str | None = None
    """The URL at which the checksum of the source is published; null where none was looked up. Not in schemas 1 and 2.
    """
    user: str | None = None
    """The account of its guests that keys are for; null where that is not known. Not in schemas 1 and 2."""
    labels: dict[str, str] = field(default_factory=dict)
    """The labels of the image: text by key. Not in schemas 1 and 2."""


class ImageBuildRequested(Event, frozen=True):
    """A caller requested the build of an image."""

    SCHEMA: ClassVar[int] = 3
    ONLY_ADDED: ClassVar[bool] = True

    image_id: str
    """The id of the new image, 16 hex digits."""
    name: str
    """The name of the image."""
    recipe: Recipe
    """The recipe that the image is built from."""
    packages: tuple[str, ...] = ()
    """The packages that the caller wants in it beside those of the recipe."""
    mirror: str | None = None
    """Where the packages come from; null for what the node's host uses, or Debian's own archive."""
    size_gib: int | None = None
    """The requested size of the disk, in GiB; null for what the recipe needs."""
    labels: dict[str, str] = field(default_factory=dict)
    """The labels of the image: text by key. Not in schemas 1 and 2."""
    first_boot: FirstBoot | None = None
    """How guests of the image take what is theirs at their first boot, as in `ImageImportRequested`; null in schemas 1
    and 2, in which a Debian takes `credentials`, and `tiny` has `none`.
    """


class ImageStored(Event, frozen=True):
    """The image's file is in its place and has passed every check. After an update it is the newer one."""

    SCHEMA: ClassVar[int] = 2
    ONLY_ADDED: ClassVar[bool] = True

    format: ImageFormat
    """The format of the image's file."""
    sha256: str
    """The SHA-256 of the image's file, 64 hex digits."""
    size_bytes: int
    """The size of the image's file, in bytes."""
    virtual_size_bytes: int
    """The size of the disk that the image stands for, in bytes."""
    published: str | None = None
    """The checksum that the source had to have, like `sha512:0f…`; null where none was given or looked up. Not in
    schema 1.
    """


class ImageUpdateRequested(Event, frozen=True):
    """A caller requested the newest file of an image of the catalogue. VMs are made of the one that is there."""

    source: str
    """Where it comes from."""
    checksums: str | None
    """The URL at which its checksum is published; null where `sha256` says it."""
    sha256: str | None
    """The SHA-256 that it has to have, 64 hex digits; null where it is looked up."""


class ImageUnchanged(Event, frozen=True):
    """What the catalogue leads to is what is here already."""


class ImageStepFailed(Event, frozen=True):
    """The host could not carry out a step."""

    step: str
    """The step that failed: `importing`, `building`, `updating` or `deleting`."""
    attempt: int
    """Which attempt at the step this was: 1, 2, 3 …."""
    reason: str
    """The failure, in one sentence: the attempt, and the error."""
    hint: str
    """The remedy, for the user; "" for none."""
    log_tail: str
    """The end of the log that shows it, at most 2,000 characters; "" for none."""
    retry_at: str | None
    """When the step is tried again at the earliest, RFC 3339 in UTC; null where it is not tried again."""


class ImageUndone(Event, frozen=True):
    """The image was never complete, and what was stored of it is removed."""


class ImageDeleteRequested(Event, frozen=True):
    """A caller requested the deletion."""


class ImageDeleted(Event, frozen=True):
    """Nothing of the image is left on the host."""


ImageEvent = (
    ImageImportRequested
    | ImageBuildRequested
    | ImageStored
    | ImageUpdateRequested
    | ImageUnchanged
    | ImageStepFailed
    | ImageUndone
    | ImageDeleteRequested
    | ImageDeleted
)
