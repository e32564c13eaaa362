"""How a build does what needs root inside of a tree: as root of the host, or as root of a user namespace.

Either way in a mount and a pid namespace of its own: what is mounted there is gone with it, and all of its processes
end when this process does, however it ends.
"""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path
from typing import Final

from aetherscale.actors.images.building.programs import run, search_path
from aetherscale.kernel.fault import Fault

PROGRAMS: Final = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils",
    "unshare": "util-linux", "setpriv": "util-linux",
}  # fmt: skip
"""The programs that the recipes of a whole Debian need, and the packages that have them."""

_IDS = "300000000-300065535"
"""Beyond those that Debian gives its users by itself."""
_NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child=KILL", "--")


def prefix() -> tuple[str, ...]:
    """What stands before a command that has to be root."""
    mapped = () if os.geteuid() == 0 else ("--map-root-user", "--map-auto")
    return ("setpriv", "--pdeathsig", "KILL", "unshare", *mapped, *_NAMESPACES)


def missing() -> list[str]:
    """The packages of the programs that this host lacks."""
    path = search_path()
    needed = PROGRAMS if os.geteuid() == 0 else {**PROGRAMS, "newuidmap": "uidmap"}
    return sorted({package for program, package in needed.items() if shutil.which(program, path=path) is None})


async def require() -> None:
    """Raises Fault where this host or this user cannot make the tree of a Debian."""
    if packages := missing():
        raise Fault(
            f"this host has no {', '.join(packages)}",
            f"apt-get install --no-install-recommends {' '.join(packages)}",
            retryable=False,
        )
    try:
        await run(*prefix(), "true", timeout_s=60)
    except Fault as refused:
        if _stays_what_it_is():
            raise Fault(
                "only root can make this image here: the service may become no other user",
                "as root, with a node of its own: aetherscale serve --state-dir DIR; there: image build, image export; "
                "then here: image import",
                retryable=False,
            ) from refused
        raise Fault(
            "only root can make this image here: a user has no subordinate ids, or may not use them",
            "run the node as root; or, if a user runs it, as root: apt-get install uidmap && usermod "
            f"--add-subuids {_IDS} --add-subgids {_IDS} {_user()}",
            retryable=False,
            log_tail=refused.log_tail,
        ) from refused


def _stays_what_it_is() -> bool:
    """Whether this process may gain no privilege by a program, as newuidmap would give it (prctl(2), NO_NEW_PRIVS)."""
    return "NoNewPrivs:\t1\n" in Path("/proc/self/status").read_text()


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
