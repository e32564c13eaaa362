"""The recipes that images are built from, and what may be said to them. Pure."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from aetherscale.actors.images.model.effects import FirstBoot, ReadyChannel

Recipe = Literal["tiny", "debian-12", "debian-13"]

MOST_PACKAGES: Final = 200
MOST_SIZE_GIB: Final = 1024

PACKAGE_PATTERN: Final = r"\A[a-z0-9][a-z0-9+.-]{0,98}[a-z0-9+.]\Z"
MIRROR_PATTERN: Final = (
    r"\Ahttps?://(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
    r"(?:/[A-Za-z0-9._~+%/-]{0,250})?\Z"
)

PackageName = Annotated[
    str,
    Meta(
        pattern=PACKAGE_PATTERN,
        description="the name of a Debian package: 2 to 100 lower-case letters, digits and the signs + - . It begins "
        "with a letter or digit, and does not end with a dash",
    ),
]
"""apt takes a dash at the end as the order to remove the package."""

Mirror = Annotated[
    str,
    Meta(
        pattern=MIRROR_PATTERN,
        description="an http or https URL without a password or a query, like http://mirror.example/debian",
    ),
]

SizeGib = Annotated[int, Meta(ge=1, le=MOST_SIZE_GIB)]


def ready_channel(recipe: str) -> ReadyChannel:
    """How guests of the recipe report that they are ready: `tiny` has our channel, a Debian its guest agent."""
    return "channel" if recipe == "tiny" else "agent"


def first_boot(recipe: str) -> FirstBoot:
    """How guests of the recipe take what is theirs at their first boot, as this version builds them."""
    return "tiny" if recipe == "tiny" else "aetherscale"


def first_boot_of_before(recipe: str) -> FirstBoot:
    """The same as versions have built them whose events do not tell: a Debian by credentials, `tiny` not at all."""
    return "none" if recipe == "tiny" else "credentials"
