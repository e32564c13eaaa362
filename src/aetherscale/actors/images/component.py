"""The images component: base images that VMs are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from aetherscale.actors.images import IDENTITY
from aetherscale.actors.images.catalogued import fetched, updated
from aetherscale.actors.images.model import commands, events
from aetherscale.actors.images.model.commands import (
    BuildImageOptions,
    FetchImageOptions,
    ImageOptions,
    ImportImageOptions,
    ListImagesOptions,
    ReadImageOptions,
    SearchImagesOptions,
)
from aetherscale.actors.images.model.decide import IMAGES as DECIDER
from aetherscale.actors.images.model.decide import Image, ImagesMessage
from aetherscale.actors.images.model.presentation import IMAGE_KIND, announce, holds, is_deleted, is_ready, is_updated
from aetherscale.actors.images.ports import CATALOGUE, IMAGE_FILES
from aetherscale.actors.images.service import ImagesService
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.findings import Finding
from aetherscale.runtime.component import Command, Component, Driver, Host, Listing, Query, World
from aetherscale.settings import Settings

_SECRET_NAME: Final = re.compile(
    r"x-(?:amz|goog|oss|cos|obs|ms)-.*|.*(?:signature|token|secret|passw|credential|hmac|jwt|session).*"
    r"|(?:.*[-_])?(?:sig|sign|key|pwd|pass|auth|authorization)|.*(?:api|access)[-_]?key.*|key-pair-id|policy|hdne[at]|hdnts|md5",
    re.IGNORECASE | re.DOTALL,
)


def _import(options: ImportImageOptions, call: Call, image_id: str, world: World) -> commands.ImportImage:
    if secret := _secret_in(options.source):
        raise Refused(
            Reason.BAD_REQUEST,
            f"import-image: the source has {secret} in it, which would be kept in the log for ever",
            field="source",
            remedy=("download it with a tool of your own, then: ", Task("image", "import", "FILE")),
        )
    name = options.name or commands.name_from(options.source)
    world.require_free(events.KIND, call.tenant, name, image_id)
    return commands.ImportImage(
        image_id,
        name,
        options.source,
        options.sha256,
        options.ready,
        options.first_boot,
        labels=options.labels,
    )


def _build(options: BuildImageOptions, call: Call, image_id: str, world: World) -> commands.BuildImage:
    _check_recipe(options)
    name = options.name or options.recipe
    world.require_free(events.KIND, call.tenant, name, image_id)
    return commands.BuildImage(
        image_id, name, options.recipe, options.packages, options.mirror, options.size_gib, options.labels
    )


def _check_recipe(options: BuildImageOptions) -> None:
    """Raises `Refused` (bad request) for options that the recipe has not, and for a package that is named twice."""
    if options.recipe == "tiny":
        given = {"packages": options.packages, "mirror": options.mirror, "size-gib": options.size_gib}
        for field, value in given.items():
            if value:
                raise Refused(
                    Reason.BAD_REQUEST,
                    f"build-image: field {field!r}: the recipe 'tiny' takes none",
                    field=field,
                    remedy="leave it out, or build debian-12 or debian-13",
                )
    twice = [name for name in dict.fromkeys(options.packages) if options.packages.count(name) > 1]
    if twice:
        raise Refused(
            Reason.BAD_REQUEST, f"build-image: field 'packages': {twice[0]!r} is there twice", field="packages"
        )


def _delete(options: ImageOptions, call: Call, image_id: str, world: World) -> commands.DeleteImage:
    return commands.DeleteImage(image_id, tuple(world.users_of(events.KIND, image_id)))


def _secret_in(source: str) -> str:
    """The kind of secret in a source; "" where it is a plain address.

    A query is judged by the names of its parameters, those of the signed addresses of object stores among them.
    """
    if not source.startswith(("http://", "https://")):
        return ""
    parts = urlsplit(source)
    if "@" in parts.netloc:
        return "a password"
    for text in (parts.query, parts.fragment):
        for name, _ in parse_qsl(text.replace(";", "&"), keep_blank_values=True):
            if _SECRET_NAME.fullmatch(name):
                return f"a signature or a key ({name[:40]!r})"
    return ""


def _is_listed(options: ListImagesOptions, image: Image) -> bool:
    return options.labels.items() <= image.labels.items()


def _open_driver(host: Host) -> Driver[Image, ImagesMessage]:
    from aetherscale.actors.images.driver import HostImages

    return HostImages.on(host.settings)


def _open_simulated(host: Host) -> Driver[Image, ImagesMessage]:
    from aetherscale.actors.images.simulated.driver import SimulatedImages

    return SimulatedImages()


def _needs(settings: Settings) -> Iterator[Finding]:
    from aetherscale.actors.images.needs import findings

    return findings(settings)


COMPONENT: Final[Component[Image, ImagesMessage]] = Component(
    identity=IDENTITY,
    kind=IMAGE_KIND,
    decider=DECIDER,
    holds=holds,
    announce=announce,
    listing=Listing(ListImagesOptions, ImageOptions, _is_listed),
    commands={
        "import-image": Command(ImportImageOptions, _import, is_ready, creates=True),
        "build-image": Command(BuildImageOptions, _build, is_ready, creates=True),
        "fetch-image": Command(FetchImageOptions, fetched, is_ready, creates=True),
        "update-image": Command(ImageOptions, updated, is_updated),
        "delete-image": Command(ImageOptions, _delete, is_deleted, frees=True),
    },
    open_driver=_open_driver,
    open_simulated=_open_simulated,
    open_service=ImagesService,
    queries={
        "search-images": Query(SearchImagesOptions, ImagesService.search),
        "inspect-image": Query(ImageOptions, ImagesService.inspect),
        "export-image": Query(ImageOptions, ImagesService.export, streams=True),
        "read-image": Query(ReadImageOptions, ImagesService.read),
    },
    offers={IMAGE_FILES: lambda driver: driver, CATALOGUE: lambda driver: driver.catalogue},
    ends={
        events.ImageImportRequested: is_ready,
        events.ImageBuildRequested: is_ready,
        events.ImageUpdateRequested: is_updated,
        events.ImageDeleteRequested: is_deleted,
    },
    needs=_needs,
)
