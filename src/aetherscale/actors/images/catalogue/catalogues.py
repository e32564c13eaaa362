"""The catalogues of a node: the one that comes with the program, and that of its operator, whose entries win.

That of the operator is a file or a URL (the setting `image-catalogue`). A file has to be right when the node starts. A
URL is asked at the start, beside everything else, and for each search; until it answers, what it said last counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from aetherscale import filecopy
from aetherscale.actors.images.catalogue.reading import MOST_BYTES, BadCatalogue, read
from aetherscale.actors.images.model.catalogued import Entry
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault
from aetherscale.statedir import make, write_file

PATIENCE_S: Final = 4.0
"""How long a search waits for the operator's catalogue."""
FIELD: Final = "image-catalogue"
_KEPT: Final = "catalogue.toml"
_READABLE: Final = "check the path, and that the node's user may read it; docs/images.md has the fields"

Whose = Literal["shipped", "own"]


class Catalogues:
    """What can be fetched by its name. `own` is a path or a URL; `networks` may be asked though they are not public."""

    def __init__(self, own: str | None = None, cache_dir: Path | None = None, networks: tuple[Any, ...] = ()) -> None:
        self._own_at = own
        self._kept = cache_dir / _KEPT if cache_dir is not None else None
        self._networks = networks
        self._architecture = os.uname().machine
        self._shipped: Mapping[str, Entry] | None = None
        self._own: Mapping[str, Entry] = {}
        self._refreshing: asyncio.Task[None] | None = None

    def find(self, name: str) -> Entry | None:
        """The entry of a name, if there is one that this host can run."""
        entry = self._own.get(name) or self._of_program().get(name)
        return entry if entry is not None and entry.url is not None else None

    def entries(self) -> Iterator[tuple[Whose, Entry]]:
        """All entries by name, with whose they are."""
        known: dict[str, tuple[Whose, Entry]] = {name: ("shipped", each) for name, each in self._of_program().items()}
        known |= {name: ("own", each) for name, each in self._own.items()}
        yield from (known[name] for name in sorted(known))

    def load(self) -> None:
        """Read what is on this host. Raises `Refused` (bad request) for a file that is no catalogue."""
        if self._own_at is None:
            return
        if not self._is_url:
            try:
                self._own = self._read_file(Path(self._own_at))
            except BadCatalogue as wrong:
                raise Refused(
                    Reason.BAD_REQUEST,
                    f"settings: {FIELD}: {self._own_at}: {wrong}",
                    field=FIELD,
                    remedy=wrong.remedy,
                ) from None
        elif self._kept is not None:
            # What was kept of an older version may be no catalogue to this one.
            with contextlib.suppress(BadCatalogue):
                self._own = self._read_file(self._kept)

    def start(self) -> None:
        """Begin to ask a URL, which may take its time."""
        if self._own_at is not None and self._is_url:
            self._begin()

    async def refresh(self) -> str:
        """Read the operator's catalogue anew. What is wrong with it, or ""; then what was known before still counts."""
        if self._own_at is None:
            return ""
        try:
            if self._is_url:
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.shield(self._begin())
            else:
                self._own = self._read_file(Path(self._own_at))
        except TimeoutError:
            return f"{self._own_at}: it did not answer within {PATIENCE_S:g} s; what it says later counts from then on"
        except (BadCatalogue, Fault) as wrong:
            return f"{self._own_at}: {wrong}"
        except OSError as failed:
            return f"{self._own_at}: it cannot be kept: {failed.strerror or 'the disk refuses it'}"
        return ""

    async def close(self) -> None:
        """Ask no more."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    @property
    def _is_url(self) -> bool:
        return self._own_at is not None and self._own_at.startswith(("http://", "https://"))

    def _begin(self) -> asyncio.Task[None]:
        """The one request that is under way."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._ask())  # noqa: TID251 - ended by `close`
            # Whether somebody waits for it or not: its failure is told to those who do.
            self._refreshing.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._refreshing

    async def _ask(self) -> None:
        from aetherscale.actors.images.fetching.texts import fetch_text
        from aetherscale.actors.images.fetching.transfer import Limits

        assert self._own_at is not None
        raw = await fetch_text(self._own_at, MOST_BYTES, Limits(networks=self._networks))
        self._own = read(raw, self._architecture)
        if self._kept is not None:
            make(self._kept.parent)
            write_file(self._kept, raw)

    def _of_program(self) -> Mapping[str, Entry]:
        if self._shipped is None:
            raw = resources.files("aetherscale.actors.images.catalogue").joinpath("images.toml").read_bytes()
            self._shipped = read(raw, self._architecture)
        return self._shipped

    def _read_file(self, path: Path) -> Mapping[str, Entry]:
        """Raises `BadCatalogue`, also where it cannot be read."""
        try:
            descriptor = filecopy.open_file(path)
            try:
                raw = os.read(descriptor, MOST_BYTES + 1)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadCatalogue(f"it cannot be read: {error.strerror}", remedy=_READABLE) from None
        return read(raw, self._architecture)
