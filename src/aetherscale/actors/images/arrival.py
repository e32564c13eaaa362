"""Bringing an image in: its checksum is looked up, it is fetched, unpacked, looked at, and put into its place.

    <images>/<image-id>.part              what is arriving, as it is published
    <images>/<image-id>.part.unpacked     what comes out of it, where it is compressed

Nothing of it can be seen as an image before the last step. A kill at any moment leaves what the next try goes on from,
or begins anew with.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from aetherscale.actors.images.catalogue.sums import MOST_BYTES, Digest, NoDigest, digest_in
from aetherscale.actors.images.fetching.copying import Places
from aetherscale.actors.images.fetching.fetch import Fetched, fetch, read
from aetherscale.actors.images.fetching.texts import fetch_text
from aetherscale.actors.images.fetching.transfer import Limits, Stopped, Transfer, open_part
from aetherscale.actors.images.files import packed
from aetherscale.actors.images.files.header import inspect, look_at_head
from aetherscale.actors.images.model.effects import FetchImage, ImageStored, ImageUnchanged
from aetherscale.actors.images.pace import Pace
from aetherscale.actors.images.store import Store
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress
from aetherscale.runtime.threads import until_stopped

SIZE_CAP_BYTES: Final = 1024**4
"""The largest file that is taken in."""


class Ways(Struct, frozen=True):
    """How files come in: from which places and servers, and whether others wait for their turn."""

    places: Places
    limits: Limits
    is_crowded: Callable[[], bool]


async def bring_in(effect: FetchImage, store: Store, ways: Ways, progress: Progress) -> ImageStored | ImageUnchanged:
    """Do what the effect asks for. Cancelling this ends all of it before it returns. Raises Fault, OSError."""
    published = await _published(effect, ways.limits, progress)
    if published is not None and str(published) == effect.known:
        return ImageUnchanged(effect.key)
    part = store.part(effect.image_id)
    fetched = await fetch(
        effect.source,
        part,
        sha256=effect.sha256,
        published=published,
        size_cap_bytes=SIZE_CAP_BYTES,
        progress=Pace(progress, "fetching", time.monotonic).tell,
        places=ways.places,
        limits=ways.limits,
        is_crowded=ways.is_crowded,
        checking=lambda: progress("checking"),
    )
    fetched = await _unpacked(fetched, progress)
    header = await asyncio.to_thread(inspect, fetched.path)
    store.put(fetched.path, effect.image_id, header.format, fetched.sha256)
    if fetched.path != part:
        part.unlink()
    return ImageStored(
        effect.key,
        header.format,
        fetched.sha256,
        fetched.size_bytes,
        header.virtual_size_bytes,
        str(published) if published is not None else None,
    )


async def stored_before(effect: FetchImage, path: Path) -> ImageStored:
    """The answer for an image that was stored by a process that ended before it could say so. Raises Fault, OSError."""
    fetched = await read(path)
    header = await asyncio.to_thread(inspect, path)
    known = Digest("sha256", effect.sha256) if effect.sha256 is not None and effect.checksums is None else None
    return ImageStored(
        effect.key,
        header.format,
        fetched.sha256,
        fetched.size_bytes,
        header.virtual_size_bytes,
        str(known) if known is not None else None,
    )


async def _published(effect: FetchImage, limits: Limits, progress: Progress) -> Digest | None:
    """The checksum that the source has to have, as it is published now. Raises Fault."""
    if effect.checksums is None:
        return Digest("sha256", effect.sha256) if effect.sha256 is not None else None
    progress("looking up the checksum")
    raw = await fetch_text(effect.checksums, MOST_BYTES, limits)
    name = unquote(urlsplit(effect.source).path).rsplit("/", 1)[-1]
    try:
        return digest_in(raw, name)
    except NoDigest as missing:
        raise Fault(
            f"{effect.checksums}: {missing}",
            "look at the address; a catalogue of your own may have another one",
            retryable=False,
        ) from None


async def _unpacked(fetched: Fetched, progress: Progress) -> Fetched:
    """The file itself, or what comes out of it where it is compressed. Raises Fault, OSError."""
    part = fetched.path
    target = part.with_name(f"{part.name}.unpacked")
    loop = asyncio.get_running_loop()
    pace = Pace(progress, "unpacking", time.monotonic)

    def report(done_bytes: int, total_bytes: int | None) -> None:
        loop.call_soon_threadsafe(pace.tell, done_bytes, total_bytes)

    work = Transfer(target, SIZE_CAP_BYTES, report)

    def unpack() -> bool:
        original = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            packing = packed.packing_of(original)
            if packing is None:
                return False
            output = open_part(target)
            try:
                packed.unpack(original, packing, output, look_at_head, work.advance)
                os.fsync(output)
            finally:
                os.close(output)
            return True
        except Exception as failed:
            target.unlink(missing_ok=True)
            if not isinstance(failed, Stopped):
                part.unlink(missing_ok=True)  # the next import of it would end in the same way
            raise
        finally:
            os.close(original)

    if not await until_stopped(unpack, work.stop):
        return fetched
    return await read(target)
