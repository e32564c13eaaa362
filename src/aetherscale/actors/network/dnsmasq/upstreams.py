"""Whom the host asks of names: what a resolver in a namespace of its own can ask too."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aetherscale.actors.network.model.dns import Address, upstreams_of

RESOLV_CONF: Final = Path("/etc/resolv.conf")
BEHIND_THE_STUB: Final = Path("/run/systemd/resolve/resolv.conf")
"""Whom systemd-resolved asks, where the host itself asks its stub on loopback (systemd-resolved.service(8))."""


def host_upstreams(resolv_conf: Path = RESOLV_CONF, behind: Path = BEHIND_THE_STUB) -> list[Address]:
    """The host's name servers that are reached from elsewhere too; none where it has only some of its own."""
    found, has_stub = upstreams_of(_text(resolv_conf))
    return upstreams_of(_text(behind))[0] or found if has_stub else found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
