"""From where the packages of a release come: the lines of its sources.list."""

from __future__ import annotations

import re

from aetherscale.actors.images.building.programs import run
from aetherscale.actors.images.model.recipes import MIRROR_PATTERN
from aetherscale.kernel.fault import Fault


async def sources(codename: str, mirror: str | None) -> tuple[str, ...]:
    """Where to take the packages of `codename` from.

    A mirror that is given is the only one. Without one it is what the host's apt uses for this release; where that is
    nothing there is no line, and mmdebstrap takes the archive that Debian has it know, with its security updates.
    """
    if mirror is not None:
        return (f"deb {mirror} {codename} main", f"deb {mirror} {codename}-updates main")
    return of_the_host(codename, await _targets())


async def _targets() -> str:
    """What the host's apt is set up for: a line of archive, release and component for each."""
    try:
        listing = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
        return await run("apt-get", "indextargets", "--format", listing, "Created-By: Packages")
    except Fault:
        return ""


def of_the_host(codename: str, targets: str) -> tuple[str, ...]:
    """The lines for a release among apt's targets, of archives that a guest may know of: without a password, by http or
    https; none where the release itself is not among them.
    """
    releases = (codename, f"{codename}-updates", f"{codename}-security")
    found: dict[str, None] = {}
    for line in targets.splitlines():
        uri, _, rest = line.partition(" ")
        release, _, component = rest.partition(" ")
        if release in releases and component == "main" and re.search(MIRROR_PATTERN, uri):
            found[f"deb {uri.rstrip('/')} {release} main"] = None
    lines = tuple(found)
    return lines if any(f" {codename} main" in line for line in lines) else ()
