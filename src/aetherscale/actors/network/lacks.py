"""What this process or its host lacks for networks: a `Fault` that says what to do. Asked whenever it matters."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from aetherscale.actors.network.dnsmasq.process import DNSMASQ
from aetherscale.actors.network.model.effects import OF_HOST, NetworkKind
from aetherscale.actors.network.netlink.faults import NET_ADMIN, SYSCTL, TUN, TUN_ACCESS
from aetherscale.actors.network.nft import nftables
from aetherscale.kernel.fault import Fault
from aetherscale.processes import launch

CAP_NET_ADMIN: Final = 12
SETTINGS: Final = Path("/proc/sys/net")
NFT: Final = "apt-get install --no-install-recommends nftables"
DNSMASQ_BASE: Final = "apt-get install --no-install-recommends dnsmasq-base"
FORWARDING: Final = "sudo aetherscale host setup --networks"

_STATUS: Final = Path("/proc/thread-self/status")
_TUN: Final = Path("/dev/net/tun")
_FORWARDING: Final = (SETTINGS / "ipv4/ip_forward", SETTINGS / "ipv6/conf/all/forwarding")


def for_networks() -> Fault | None:
    """The first thing that is lacking for any network; None for nothing."""
    if not _has_net_admin():
        return Fault("the node has no CAP_NET_ADMIN", NET_ADMIN, retryable=False)
    if not _TUN.exists():
        return Fault("the host has no /dev/net/tun", TUN, retryable=False)
    if not _can_open(_TUN, os.O_RDWR):
        return Fault("the node may not open /dev/net/tun", TUN_ACCESS, retryable=False)
    if not _can_open(_FORWARDING[0], os.O_WRONLY):
        return Fault(f"{SETTINGS} cannot be written", SYSCTL, retryable=False)
    if shutil.which(DNSMASQ) is None:
        return Fault("dnsmasq is not installed", DNSMASQ_BASE, retryable=False)
    try:
        nftables.load()
    except OSError as missing:
        return Fault(str(missing), NFT, retryable=False)
    return None


def for_kind(kind: NetworkKind, *, allow_unisolated: bool) -> Fault | None:
    """The first thing that is lacking for a network of this kind; None for nothing."""
    lacking = for_networks() or (forwarding() if kind == "nat" else None)
    if lacking is not None or kind in OF_HOST:
        return lacking
    try:
        launch.require_isolation("", DNSMASQ, allow_unisolated=allow_unisolated)
    except Fault as unisolated:
        return unisolated
    return None


def forwarding() -> Fault | None:
    """What keeps the host from routing for guests; None for nothing."""
    for path in _FORWARDING:
        if path.exists() and path.read_text().strip() == "0":
            return Fault(f"the host forwards no packets ({path} is 0)", FORWARDING, retryable=False)
    return None


def _can_open(path: Path, flags: int) -> bool:
    """Whether it can be opened so. access(2) does not know of the ambient capabilities of a service."""
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _has_net_admin() -> bool:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_NET_ADMIN & 1)
    return False
