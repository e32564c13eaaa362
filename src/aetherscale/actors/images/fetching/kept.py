"""The data of downloads that were given up, for the next import of the same source by the same tenant.

    <images>/kept/<digest of tenant and source>.part[.json]

A few for each tenant, and for a week; the server says by its validator whether they are still of the same file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

DIRECTORY: Final = "kept"
MOST_OF_TENANT: Final = 4
MOST_OF_ALL: Final = 32
KEPT_S: Final = 7 * 24 * 3600.0
LEAST_BYTES: Final = 16 * 1024
"""Less is brought again sooner than it is looked up."""


def keep(part: Path, tenant: str, source: str, now_s: float) -> None:
    """Put a part file aside, where it can be gone on from. Raises OSError."""
    beside = part.with_name(f"{part.name}.json")
    if not part.is_file() or not beside.is_file() or part.lstat().st_size < LEAST_BYTES:
        return
    place = _place(part.parent, tenant, source)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    beside.replace(place.with_name(f"{place.name}.json"))
    part.replace(place)
    os.utime(place, (now_s, now_s))
    sweep(part.parent, now_s)


def take(part: Path, tenant: str, source: str) -> None:
    """Have what was kept of a source at the part file, if there is something. Raises OSError."""
    place = _place(part.parent, tenant, source)
    if place.is_file() and not part.exists():
        place.replace(part)
        place.with_name(f"{place.name}.json").replace(part.with_name(f"{part.name}.json"))


def sweep(images_dir: Path, now_s: float) -> None:
    """Remove what is too old, and the oldest of what is too many."""
    directory = images_dir / DIRECTORY
    if not directory.is_dir():
        return
    parts = sorted(directory.glob("*.part"), key=lambda path: path.stat().st_mtime, reverse=True)
    of_tenant: dict[str, int] = {}
    for index, path in enumerate(parts):
        tenant = path.name.partition(".")[0]
        of_tenant[tenant] = of_tenant.get(tenant, 0) + 1
        too_many = of_tenant[tenant] > MOST_OF_TENANT or index >= MOST_OF_ALL
        if too_many or path.stat().st_mtime < now_s - KEPT_S:
            path.unlink()
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)
    for path in directory.glob("*.part.json"):
        if not path.with_name(path.name.removesuffix(".json")).exists():
            path.unlink()


def _place(images_dir: Path, tenant: str, source: str) -> Path:
    whose, what = (hashlib.sha256(text.encode()).hexdigest()[:32] for text in (tenant, source))
    return images_dir / DIRECTORY / f"{whose}.{what}.part"
