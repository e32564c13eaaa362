"""The requirements of images, for `doctor`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from aetherscale.kernel.findings import Finding
from aetherscale.settings import Settings


def findings(settings: Settings) -> Iterator[Finding]:
    """Whether images can be built from Debian's packages."""
    missing = [name for name in ("apt-get", "apt-cache", "dpkg", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        found = f"{', '.join(missing)}: not installed, so `aetherscale image build` does not work"
        yield Finding("recipes", "warning", found, "import images instead: aetherscale image import FILE|URL")
    else:
        yield Finding("recipes", "ok", f"apt and dpkg are there for `aetherscale image build`{_of_debian()}")


def _of_debian() -> str:
    """What the recipes of a whole Debian lack, which only they need; "" where it is all there."""
    from aetherscale.actors.images.building import privilege

    packages = privilege.missing()
    if not packages:
        return ""
    return f"; only debian-12 and debian-13 need more: apt-get install --no-install-recommends {' '.join(packages)}"
