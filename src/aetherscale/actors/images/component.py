"""Images, put together: the tasks, what they look up, and how effects reach the host."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec.structs import replace

from aetherscale.actors.images.model import commands, effects, events
from aetherscale.actors.images.model.commands import (
    BuildImageOptions,
    ImageOptions,
    ImportImageOptions,
    ListImagesOptions,
)
from aetherscale.actors.images.model.decide import IMAGES, Image, ImagesMessage
from aetherscale.actors.images.model.presentation import IMAGE_KIND, announce, reservations, settle, view
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.names import IMAGE_NAME_PATTERN, derive_id
from aetherscale.kernel.registry import Aggregate, Registry
from aetherscale.kernel.replies import Chunk, item, result
from aetherscale.kernel.reservations import Seen, use_stream
from aetherscale.runtime.component import CommandTask, Component, Progress, QueryTask

NAME: Final = "images"

_SECRET_NAME: Final = re.compile(
    r"x-(?:amz|goog|oss|cos|obs|ms)-.*|.*(?:signature|token|secret|passw|credential|hmac|jwt|session).*"
    r"|(?:.*[-_])?(?:sig|sign|key|pwd|pass|auth|authorization)|.*(?:api|access)[-_]?key.*|key-pair-id|policy|hdne[at]|hdnts|md5",
    re.IGNORECASE | re.DOTALL,
)

Perform = Callable[[effects.ImagesEffect, Progress], Awaitable[effects.ImagesOutcome]]
NamesOf = Callable[[Iterable[str]], Sequence[str]]
"""The names of the VMs with these ids, sorted."""


class Images:
    """The tasks of the images component on one registry."""

    def __init__(self, node: str, registry: Registry[Image], perform: Perform, names_of: NamesOf) -> None:
        self._node = node
        self._registry = registry
        self._perform = perform
        self._names_of = names_of

    def component(self) -> Component[Image, ImagesMessage]:
        """The component as the actor runs it."""
        return Component(
            name=NAME,
            kind=IMAGE_KIND,
            decider=IMAGES,
            reservations=reservations,
            announce=announce,
            settle=settle,
            result=self._result,
            perform=self._perform_for,
            failed=lambda effect, reason: effects.EffectFailed(effect.key, reason),
            commands={
                "import-image": CommandTask(ImportImageOptions, self._new_id, self._import),
                "build-image": CommandTask(BuildImageOptions, self._new_id, self._build),
                "delete-image": CommandTask(
                    ImageOptions, self._target, self._delete, _reference, self._seen_by_delete, urgent=True
                ),
            },
            queries={
                "list-images": QueryTask(ListImagesOptions, self._list),
                "image-info": QueryTask(ImageOptions, self._info),
            },
        )

    def usable(self, tenant: str, reference: str) -> Aggregate[Image]:
        """An image that a VM can be made from. Raises `Refused` (404, 409)."""
        found = self._registry.find(events.KIND, tenant, reference)
        if found is None or found.state.phase == "deleted":
            raise Refused(
                404,
                f"no such image: {reference!r}",
                field="image",
                hint="aetherscale image list, or: aetherscale image build tiny",
            )
        if found.state.phase != "ready":
            raise Refused(
                409,
                f"the image {reference!r} is not ready but {found.state.phase}",
                field="image",
                retryable=found.state.phase in ("importing", "building"),
                hint=f"aetherscale image show {reference}",
            )
        return found

    async def _perform_for(self, effect: effects.ImagesEffect, progress: Progress) -> effects.ImagesOutcome:
        """Have an effect done for the tenant whose image it is."""
        if not isinstance(effect, effects.BuildImage):
            effect = replace(effect, tenant=self._registry.aggregates[effect.image_id].tenant)
        return await self._perform(effect, progress)

    # --- commands ------------------------------------------------------------------------------------------------

    def _new_id(self, options: Any, call: Call) -> str:
        return derive_id(self._node, call.tenant, call.command_id)

    def _import(self, options: ImportImageOptions, call: Call, image_id: str) -> commands.ImportImage:
        if secret := _secret_in(options.source):
            raise Refused(
                400,
                f"import-image: the source has {secret} in it, which would be kept in the log for ever",
                field="source",
                hint="download it with a tool of your own, then: aetherscale image import FILE",
            )
        name = options.name or _name_from(options.source)
        self._check_free(call.tenant, name, image_id)
        return commands.ImportImage(image_id, name, options.source, options.sha256, options.ready)

    def _build(self, options: BuildImageOptions, call: Call, image_id: str) -> commands.BuildImage:
        name = options.name or options.recipe
        self._check_free(call.tenant, name, image_id)
        return commands.BuildImage(image_id, name, options.recipe)

    def _delete(self, options: ImageOptions, call: Call, image_id: str) -> commands.DeleteImage:
        users = self._registry.uses_of(events.KIND, image_id).users
        return commands.DeleteImage(image_id, tuple(self._names_of(users)))

    def _seen_by_delete(self, options: ImageOptions, call: Call, image_id: str) -> Sequence[Seen]:
        """Whoever begins to use it meanwhile has it decided on anew."""
        return (Seen(use_stream(events.KIND, image_id), self._registry.uses_of(events.KIND, image_id).version),)

    def _check_free(self, tenant: str, name: str, image_id: str) -> None:
        bearer = self._registry.named(events.KIND, tenant, name)
        if bearer is not None and bearer.id != image_id:
            raise Refused(
                409,
                f"an image named {name!r} exists already (it is {bearer.state.phase})",
                field="name",
                hint=f"give another one with --name, or: aetherscale image delete {name}",
                details={"image-id": bearer.id},
            )

    def _target(self, options: ImageOptions, call: Call) -> str:
        return self._find(options, call).id

    def _find(self, options: ImageOptions, call: Call) -> Aggregate[Image]:
        reference = _reference(options, call)
        if not reference:
            raise Refused(400, f"{NAME}.{call.task}: the field 'image' is missing", field="image")
        found = self._registry.find(events.KIND, call.tenant, reference)
        if found is None:
            raise Refused(404, f"no such image: {reference!r}", field="image", hint="aetherscale image list")
        return found

    # --- queries -------------------------------------------------------------------------------------------------

    def _result(self, aggregate: Aggregate[Image]) -> Mapping[str, Any]:
        return {
            "image-id": aggregate.id,
            "image": view(aggregate.state, self._node, aggregate.version, aggregate.requested_by),
        }

    async def _list(self, options: ListImagesOptions, call: Call) -> AsyncIterator[Chunk]:
        wanted = [e for e in self._registry.of_tenant(call.tenant) if options.all or e.state.phase != "deleted"]
        wanted.sort(key=lambda aggregate: (aggregate.state.name, aggregate.id))
        for aggregate in wanted:
            yield item(self._result(aggregate))
        yield result({"count": len(wanted)})

    async def _info(self, options: ImageOptions, call: Call) -> AsyncIterator[Chunk]:
        yield result(self._result(self._find(options, call)))


def _reference(options: ImageOptions, call: Call) -> str:
    """What the image is called by."""
    return call.object_id or options.image


def _secret_in(source: str) -> str:
    """What a source lets anybody do who reads it; "" where it is a plain address.

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


def _name_from(source: str) -> str:
    """`/srv/Debian-12_generic.qcow2` → `debian-12_generic`. Raises `Refused` (400) where that gives no name."""
    last = unquote(urlsplit(source).path).rsplit("/", 1)[-1].lower()
    name = re.sub(r"\.(qcow2|qcow|img|raw|iso)\Z", "", last)
    name = re.sub(r"[^a-z0-9._-]+", "-", name)[:63].strip("-._")
    if re.fullmatch(IMAGE_NAME_PATTERN, name) is None:
        raise Refused(400, f"import-image: no name can be made from {last[:100]!r}", field="name", hint="give a name")
    return name
