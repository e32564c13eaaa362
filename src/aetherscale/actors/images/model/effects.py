"""What the images component may ask of the host, and every answer. Ensure-effects, as in compute. Pure data."""

from __future__ import annotations

from typing import Final, Literal, get_args

from msgspec import Struct

from aetherscale.kernel.failures import EffectFailed

ImageFormat = Literal["qcow2", "raw"]
ReadyChannel = Literal["agent", "channel", "none"]
FirstBoot = Literal["credentials", "aetherscale", "tiny", "cloud-init", "none"]
READY_CHANNELS: Final[tuple[ReadyChannel, ...]] = get_args(ReadyChannel)
FIRST_BOOTS: Final[tuple[FirstBoot, ...]] = get_args(FirstBoot)


class FetchImage(Struct, frozen=True):
    """Ensure that the image is there: copied or downloaded, its checksum checked, unpacked, and its header checked."""

    key: str
    image_id: str
    source: str
    sha256: str | None
    tenant: str = ""
    """For whom; the actor knows."""
    deadline_s: float = 24 * 3600.0
    not_before_us: int = 0
    checksums: str | None = None
    """Where the checksum that it has to have is published; None where none is."""
    known: str | None = None
    """The published checksum of what is there: nothing is fetched where it is the same still."""
    replaces: str | None = None
    """The SHA-256 of the image's file whose place it takes; None for the first one."""


class BuildImage(Struct, frozen=True):
    """Ensure that an image of the recipe is there."""

    key: str
    image_id: str
    recipe: str
    packages: tuple[str, ...] = ()
    mirror: str | None = None
    size_gib: int | None = None
    deadline_s: float = 3600.0
    not_before_us: int = 0


class RemoveImage(Struct, frozen=True):
    """Ensure that nothing of the image is left. What has arrived of one that is `rolled_back` may be of use again."""

    key: str
    image_id: str
    source: str = ""
    rolled_back: bool = False
    tenant: str = ""
    deadline_s: float = 60.0
    not_before_us: int = 0


ImagesEffect = FetchImage | BuildImage | RemoveImage


class ImageStored(Struct, frozen=True):
    """The image is in its place, checked and synced to the disk."""

    key: str
    format: ImageFormat
    sha256: str
    size_bytes: int
    virtual_size_bytes: int
    published: str | None = None
    """The checksum that the source had to have, like `sha512:0f…`; None where none was given or looked up."""


class ImageUnchanged(Struct, frozen=True):
    """What is published is what is here."""

    key: str


class ImageRemoved(Struct, frozen=True):
    """Nothing of the image is left."""

    key: str


ImagesOutcome = ImageStored | ImageUnchanged | ImageRemoved | EffectFailed
