"""What the kernel refuses about network devices, in words for the user."""

from __future__ import annotations

import errno
from typing import Final

from aetherscale import shortage
from aetherscale.actors.network.model.devices import Link
from aetherscale.actors.network.routes import default_device
from aetherscale.kernel.fault import Fault

NET_ADMIN: Final = (
    "the node needs CAP_NET_ADMIN: AmbientCapabilities=CAP_NET_ADMIN in its unit, or run it as root; "
    "in a container, --cap-add NET_ADMIN"
)
TUN: Final = "load the module: modprobe tun; in a container, --device /dev/net/tun"
TUN_ACCESS: Final = "the user whom the node runs as must be able to read and write it: ls -l /dev/net/tun"
BRIDGES: Final = "load the module: modprobe bridge"
SYSCTL: Final = "the node must be able to write below /proc/sys/net: ReadWritePaths=/proc/sys/net in its unit"

_LASTING: Final = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG)
"""An error that a second attempt a moment later does not fix."""


def fault_of(operation: str, code: int, said: str, remedy: str = "") -> Fault:
    """An error of the kernel (its number, and what it said of it) while trying `operation`.

    `remedy` is what is known to help against an error that has no remedy of its own.
    """
    if code == errno.EPERM:
        return Fault(f"could not {operation}: the node may not change network devices", NET_ADMIN, retryable=False)
    return Fault(
        f"the kernel refused to {operation}: {said}", remedy or shortage.hint_of(code), retryable=code not in _LASTING
    )


def no_bridge(operation: str, name: str) -> Fault:
    """There is no bridge of this name."""
    return Fault(
        f"could not {operation}: there is no bridge {name} on the host", "make it: see ip -br link type bridge"
    )


def no_bridge_of_host(name: str, *, is_device: bool) -> Fault:
    """A network cannot be this bridge of the host: there is none, or a device of this name that is something else."""
    if is_device:
        return Fault(f"{name} of the host is no bridge", "name a bridge: ip -br link type bridge", retryable=False)
    making = f"aetherscale host setup bridge --bridge {name} --device {default_device() or 'eth0'}"
    return Fault(f"the host has no bridge {name}", f"sudo {making}; those that it has: ip -br link type bridge")


def not_ours(operation: str, link: Link) -> Fault:
    """A device of the name that is to be ours belongs to somebody else."""
    whose = f"its alias is {link.alias_text!r}" if link.alias_text else "it has no alias"
    return Fault(
        f"could not {operation}: there is a device {link.name} that this node did not make ({whose})",
        f"whoever made it has to remove or rename it: ip -d link show {link.name}",
        retryable=False,
    )
