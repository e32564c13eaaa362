"""What the host itself does with IPv6 on a device of ours: sysctl settings below /proc/sys/net, and what replaces them.

The kernel tells nobody when they change.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from aetherscale.actors.network.netlink import encoding
from aetherscale.actors.network.netlink.faults import SYSCTL, fault_of

_IPV6: Final = Path("/proc/sys/net/ipv6/conf")


def without_addresses(name: str) -> bytes:
    """What keeps the host from giving itself addresses there; nothing where the host has no IPv6."""
    return encoding.without_addresses() if os.access(f"{_IPV6}/{name}", os.F_OK) else b""


def believes_routers(name: str) -> bool:
    """Whether the host takes addresses and routes from router advertisements there."""
    try:
        return (_IPV6 / name / "accept_ra").read_text().strip() != "0"
    except OSError:
        return False


def ignore_routers(name: str) -> None:
    """Keep the host from taking an address, and a default route, from a router advertisement of a guest.

    It does so with no link-local address and with IN6_ADDR_GEN_MODE_NONE, too. Raises `Fault`.
    """
    setting = _IPV6 / name / "accept_ra"
    try:
        if believes_routers(name):
            setting.write_text("0")
    except OSError as error:
        said = error.strerror or str(error)
        code = errno.EACCES if error.errno == errno.EPERM else error.errno or errno.EIO
        raise fault_of(f"write {setting}", code, said, SYSCTL) from error
