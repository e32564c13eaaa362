"""What else configures a device of the host: what would give it its addresses again, or takes them away in time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

CLIENTS: Final = ("dhclient", "dhcpcd", "udhcpc", "dhcpcanon", "connmand", "wickedd")
"""Programs that renew addresses of devices."""
_STANZA: Final = re.compile(r"^\s*iface\s+(\S+)\s+inet6?\s+(dhcp|auto)\b", re.MULTILINE)


def manager(device: str, index: int, root: Path = Path("/")) -> str:
    """The program that manages a device and would not leave it alone; "" where none is known.

    One that configures it at a boot and then leaves it, as ifupdown with an address that is written down, is none.
    """
    if _says(root / f"run/NetworkManager/devices/{index}", r"^(managed=(true|1|full)|connection-uuid=)"):
        return "NetworkManager"
    link = root / f"run/systemd/netif/links/{index}"
    if _says(link, r"^NETWORK_FILE=\S") and not _says(link, r"^ADMIN_STATE=unmanaged"):
        return "systemd-networkd"
    for name in _clients(device, root / "proc"):
        return name
    etc = root / "etc/network"
    for file in (etc / "interfaces", *sorted((etc / "interfaces.d").glob("*"))):
        for name, how in _STANZA.findall(_text(file)):
            if name == device:
                return f"ifupdown ({how} in {file})"
    return ""


def _clients(device: str, proc: Path) -> Iterator[str]:
    own = _namespace(proc / "self")
    for place in proc.glob("[0-9]*"):
        words = _text(place / "cmdline").split("\0")
        name = Path(words[0].split(":")[0]).name
        of_all = name in ("connmand", "wickedd") or not any(word and not word.startswith("-") for word in words[1:])
        if name in CLIENTS and (device in words or of_all) and _namespace(place) == own:
            yield name


def _namespace(place: Path) -> str:
    with suppress(OSError):
        return os.readlink(place / "ns/net")
    return ""


def _says(file: Path, what: str) -> bool:
    return re.search(what, _text(file), re.MULTILINE) is not None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
