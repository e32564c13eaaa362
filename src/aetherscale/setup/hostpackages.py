"""The part of `host setup` that installs what is missing of Debian's packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aetherscale.kernel.errors import Reason, Refused
from aetherscale.setup.hostwork import PACKAGES_S, Part, ended

PACKAGES: Final[Mapping[str, str]] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "dbus-daemon": "dbus",
    "setpriv": "util-linux",
}
"""The Debian package of each program that a node needs."""
PAM: Final = "lib/*/security/pam_systemd.so"
"""Without it no user has a manager. Its package is not in a minimal Debian."""


def packages(programs: Mapping[str, str]) -> Part:
    """These programs are there, each from its package, and so is what makes managers of users."""
    missing = sorted({package for program, package in programs.items() if which(program) is None})
    if not any(Path("/usr").glob(PAM)):
        missing.append("libpam-systemd")
    line = ("apt-get", "install", "--yes", "--no-install-recommends", *missing)

    def install() -> None:
        if which("apt-get") is None:
            raise Refused(
                Reason.NOT_IMPLEMENTED,
                f"host setup: not installed: {', '.join(missing)}",
                remedy="install these Debian packages, then run it again",
            )
        ended("apt-get", "update", limit_s=PACKAGES_S)
        done = ended(*line, limit_s=PACKAGES_S)
        if done.returncode != 0:
            why = (done.stderr or done.stdout).strip()[-500:]
            raise Refused(
                Reason.INTERNAL, f"host setup: {' '.join(line)}: {why}", remedy=f"apt-get update; {' '.join(line)}"
            )

    what = f"Debian packages: {' '.join(line)}" if missing else "Debian packages"
    return Part(what, lambda: not missing, install)


def which(name: str) -> str | None:
    """The path of a program, as a shell of root's finds it."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")
