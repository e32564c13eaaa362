"""What callers may say to the images component: options as they are on the wire, and the commands they become."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from aetherscale.actors.images.model.effects import FirstBoot, ReadyChannel
from aetherscale.actors.images.model.recipes import MOST_PACKAGES, Mirror, PackageName, Recipe, SizeGib
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import IMAGE_NAME_PATTERN, ImageName, ImageReference, Labels
from aetherscale.kernel.reservations import User
from aetherscale.kernel.wire import Message

Source = Annotated[
    str,
    Meta(
        pattern=r"\A(?:/|https?://)[^\x00-\x1f\x7f]{0,4000}\Z",
        description="an absolute path on the node's host, or an http or https URL",
    ),
]
_QUOTED: Final = re.compile("(?:%[0-9A-Fa-f]{2})+")

Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", description="64 lower-case hex digits")]


class ImportImageOptions(Message, frozen=True):
    """Options of `import-image`."""

    source: Source
    """Where the image comes from. A URL with a password or a signature in it is refused."""
    name: ImageName | None = None
    """The name of the image; null for one that is made from the last part of the source."""
    sha256: Sha256 | None = None
    """The SHA-256 that the source has to have; null for no check."""
    ready: ReadyChannel = "none"
    """How guests of the image report that they are ready: `agent`, through the QEMU guest agent; `channel`, by the line
    `ready` on the virtio port `org.aetherscale.ready.0`; `none`, not at all.
    """
    first_boot: FirstBoot = "none"
    """How guests of the image take what is theirs at their first boot, such as keys, as in the event
    `ImageImportRequested`: `credentials` for systemd from version 252 on; `aetherscale` and `tiny` for images that
    recipes of ours have built; `none`, not at all.
    """
    labels: Labels = field(default_factory=dict)
    """Labels of the image: text by key."""


class FetchImageOptions(Message, frozen=True):
    """Options of `fetch-image`."""

    name: ImageName
    """The name of the image in the catalogue, which it has here too."""
    labels: Labels = field(default_factory=dict)
    """Labels of the image: text by key."""


class SearchImagesOptions(Message, frozen=True):
    """Options of `search-images`."""

    word: Annotated[str, Meta(max_length=100)] = ""
    """Only entries with this in their name or description, in small or capital letters; "" for all."""


class BuildImageOptions(Message, frozen=True):
    """Options of `build-image`."""

    recipe: Recipe
    """The recipe to build from."""
    name: ImageName | None = None
    """The name of the image; null for the name of the recipe."""
    packages: Annotated[tuple[PackageName, ...], Meta(max_length=MOST_PACKAGES)] = ()
    """Packages that a Debian has beside those of its recipe, each once."""
    mirror: Mirror | None = None
    """Where a Debian's packages come from; null for what apt on the node's host uses for this release, else for the
    archive of Debian itself.
    """
    size_gib: SizeGib | None = None
    """The size of the disk of a Debian, in GiB; null for what it needs and some room. Less than it needs is refused."""
    labels: Labels = field(default_factory=dict)
    """Labels of the image: text by key."""


class ImageOptions(Message, frozen=True):
    """Options of `delete-image`, `update-image`, `inspect-image`, `export-image` and `image-info`."""

    image: ImageReference = ""
    """The image; "" where the subject names it (`obj`)."""


class ReadImageOptions(Message, frozen=True):
    """Options of `read-image`."""

    sha256: Sha256
    """The SHA-256 of the image's file when `export-image` was asked for it: one that was updated since is another."""
    offset: Annotated[int, Meta(ge=0, le=2**62)]
    """Where to begin, in bytes."""
    image: ImageReference = ""
    """The image; "" where the subject names it (`obj`)."""


class ListImagesOptions(Message, frozen=True):
    """Options of `list-images`."""

    all: bool = False
    """Whether deleted images are listed too."""
    labels: Labels = field(default_factory=dict)
    """Only images that have all of these labels."""


class ImportImage(Struct, frozen=True):
    """Bring an image in."""

    image_id: str
    name: str
    source: str
    sha256: str | None
    ready_channel: ReadyChannel
    first_boot: FirstBoot = "none"
    catalogued: bool = False
    checksums: str | None = None
    user: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class UpdateImage(Struct, frozen=True):
    """Have the newest file of an image of the catalogue, which is to be found there now."""

    image_id: str
    source: str
    checksums: str | None
    sha256: str | None


class BuildImage(Struct, frozen=True):
    """Make an image from a recipe."""

    image_id: str
    name: str
    recipe: Recipe
    packages: tuple[str, ...] = ()
    mirror: str | None = None
    size_gib: int | None = None
    labels: dict[str, str] = field(default_factory=dict)


class DeleteImage(Struct, frozen=True):
    """Remove an image, which these use."""

    image_id: str
    used_by: tuple[User, ...] = ()


ImagesCommand = ImportImage | BuildImage | UpdateImage | DeleteImage


def _unquoted(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "replace")


def name_from(source: str) -> str:
    """`/srv/Debian-12_generic.qcow2` → `debian-12_generic`. Raises `Refused` (bad request) where that gives no name."""
    path = re.sub(r"\Ahttps?://[^/?#]*", "", source).partition("?")[0].partition("#")[0]
    last = _QUOTED.sub(_unquoted, path).rsplit("/", 1)[-1].lower()
    name = re.sub(r"\.(qcow2|qcow|img|raw|iso)\Z", "", re.sub(r"\.(xz|gz|zst|zstd)\Z", "", last))
    name = re.sub(r"[^a-z0-9._-]+", "-", name)[:63].strip("-._")
    if re.fullmatch(IMAGE_NAME_PATTERN, name) is None:
        raise Refused(
            Reason.BAD_REQUEST,
            f"import-image: no name can be made from {last[:100]!r}",
            field="name",
            remedy="give a name",
        )
    return name
