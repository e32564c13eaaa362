"""The service of this host, as `aetherscale host setup` makes it: what it is called, where it is, whom it is for.

Everything here is asked of the host when it is needed. Knows nothing of what a node does.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

USER: Final = "aetherscale"
"""Whom the node runs as."""
GROUP: Final = "aetherscale"
"""The group that may use the node: as good as root over its virtual machines, and over nothing else."""
UNIT: Final = "aetherscale.service"
READER_SOCKET_UNIT: Final = "aetherscale-reader.socket"
READER_UNIT: Final = "aetherscale-reader@.service"
UNITS: Final = Path("/etc/systemd/system")
UNIT_FILE: Final = UNITS / UNIT
STATE_DIR: Final = Path("/var/lib/aetherscale")
RUN_DIR: Final = Path("/run/aetherscale")
"""Where the members of the group find the way to the node."""
READER: Final = Path("/run/aetherscale-reader.sock")
"""Where the members of the group have the log read by the service's user; see `gateways/cli/reader.py`."""
CONFIG: Final = Path("/etc/aetherscale/aetherscale.toml")

START: Final = "systemctl start aetherscale; journalctl -u aetherscale"
"""The command to type where it does not run."""
CONNECT_S: Final = 0.5
"""How long a port of this host may take to accept a connection."""


def is_asked_about(state_dir: Path) -> bool:
    """Whether this is about the node of this host's service, as its own user sees the host."""
    return is_state(state_dir) and os.geteuid() == uid()


def is_installed() -> bool:
    """Whether this host has it; it need not run."""
    return UNIT_FILE.exists()


def uid() -> int | None:
    """The number of its user; None where there is no such user."""
    import pwd

    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return None


def is_state(state_dir: Path) -> bool:
    """Whether a state directory is that of the service, which may be stopped or even taken out."""
    return state_dir == STATE_DIR and (is_installed() or _owner(state_dir) == (uid() or -1))


def is_member() -> bool:
    """Whether this process may use the node: it is root, the service's own, or has the group."""
    gid = _gid()
    return os.geteuid() in (0, uid()) or (gid is not None and gid in (os.getegid(), *os.getgroups()))


def membership() -> tuple[str, str]:
    """Why this process may not use the node, and what to type."""
    import grp
    import pwd

    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    why = f"this host's node is for the members of the group {GROUP}"
    if _gid() is not None and name in grp.getgrnam(GROUP).gr_mem:
        return f"{why}; {name} is one, but was not yet when this session began", f"log in again, or: newgrp {GROUP}"
    return (
        f"{why}, and {name} is not one",
        f"as root: usermod -aG {GROUP} {name}; then log in again. Or run a node of your own: aetherscale serve",
    )


def listens(url: str) -> bool:
    """Whether a server listens at the first address of a NATS URL without credentials."""
    host, _, port = url.split(",")[0].rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
            return True
    except (OSError, ValueError):
        return False


def build() -> str:
    """Names what is installed here and how it is set: the version, and a digest of code, packages, unit and settings.

    A node of the service reports its own to systemd as it starts, so that `host setup` sees whether it is out of date.
    """
    import hashlib
    import importlib.metadata

    from aetherscale import __version__

    digest = hashlib.sha256()
    digest.update(__version__.encode())
    for package in sorted(f"{each.name} {each.version}" for each in importlib.metadata.distributions()):
        digest.update(package.encode())
    with suppress(importlib.metadata.PackageNotFoundError):
        # It has the digest of every file of the package.
        digest.update((importlib.metadata.distribution("aetherscale").read_text("RECORD") or "").encode())
    for path in (UNIT_FILE, CONFIG):
        with suppress(OSError):
            digest.update(path.read_bytes())
    return f"aetherscale {__version__}, build {digest.hexdigest()[:12]}"


def _gid() -> int | None:
    import grp

    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None
