"""Where a node's things are on a host that says nothing else, and the name that such a host gives its node.

The service of a host has its own places (`aetherscale.service`); a user has those of the XDG Base Directory
Specification.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from aetherscale import service
from aetherscale.kernel.names import is_name


def state_dir(environ: Mapping[str, str]) -> Path:
    """The state directory: root's is that of the service."""
    if os.geteuid() == 0:
        return service.STATE_DIR
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / "aetherscale"


def config(environ: Mapping[str, str]) -> Path:
    """The file of settings, which need not be there."""
    if os.geteuid() == 0:
        return service.CONFIG
    return _xdg(environ, "XDG_CONFIG_HOME", ".config") / "aetherscale" / "aetherscale.toml"


def node_name(hostname: str) -> str:
    """A host's name made into a valid name of a node: its first part, in lower case, other characters as dashes."""
    text = re.sub(r"[^a-z0-9]+", "-", hostname.lower().partition(".")[0])[:60].strip("-")
    if not text:
        return "node"
    return text if is_name(text) else f"n-{text}"


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    """A base directory. A relative one is to be ignored."""
    found = environ.get(variable, "")
    return Path(found) if found.startswith("/") else Path(_home(environ)) / default


def _home(environ: Mapping[str, str]) -> str:
    """The user's home directory, also where HOME is not set, as in a service."""
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir or "/"
    except KeyError:
        return "/"
