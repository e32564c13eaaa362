"""Run in the sandbox of the service's unit, as its user: what it may do with networks, written as JSON to stdout.

Everything that it makes it removes again.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final

from aetherscale.actors.network import needs
from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from aetherscale.actors.network.model.devices import Alias, bridge_name, group_of, tap_name
from aetherscale.actors.network.model.dns import DnsNetwork
from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.nft.nftables import Nftables
from aetherscale.service import STATE_DIR
from aetherscale.settings import Settings

NODE, NETWORK, VM = "host1", "0123456789abcdef", "2123456789abcdef"
OTHERS: Final = ("kernel/hostname", "kernel/core_pattern", "kernel/panic", "fs/file-max", "vm/swappiness")
"""Settings below /proc/sys that are not of networks."""
KINDS: Final = ("pid", "ipc", "uts", "cgroup")
"""Namespaces that it does not need."""


async def devices() -> dict[str, Any]:
    """A bridge with a tap, and what its setting for router advertisements is after that."""
    bridge, tap = bridge_name(NETWORK), tap_name(VM, 0)
    links = Links(NODE)
    await links.open()
    await links.ensure_bridge(bridge, Alias(NODE, "network", NETWORK), 1500)
    os.close(await links.open_tap(tap, Alias(NODE, "port", VM), bridge, group_of(VM)))
    made = sorted(link.name for link in await links.ours())
    accept_ra = Path(f"/proc/sys/net/ipv6/conf/{bridge}/accept_ra").read_text().strip()
    resolver = await resolvers(bridge)
    await links.remove_taps([tap])
    await links.remove_bridge(bridge, Alias(NODE, "network", NETWORK))
    left = [link.name for link in await links.ours()]
    await links.close()
    return {"made": made, "wanted": sorted((bridge, tap)), "accept_ra": accept_ra, "resolver": resolver, "left": left}


async def resolvers(bridge: str) -> bool:
    """Whether a resolver serves in the bridge; a fault of it is raised."""
    resolvers = Resolvers(STATE_DIR, NODE, lambda network_id, words: None)
    await resolvers.start()
    try:
        network = DnsNetwork("lab", "isolated", IPv4Network("10.9.8.0/24"), IPv6Network("fd12:3456:789a:1::/64"))
        await resolvers.ensure(NETWORK, bridge, network, ())
        return resolvers.pid_of(NETWORK) is not None
    finally:
        await resolvers.remove(NETWORK)
        await resolvers.close()


def table() -> str:
    """A table of nft, as it is listed."""
    nftables = Nftables()
    nftables.run("add table bridge aetherscale-try")
    listed = nftables.run("list tables")
    nftables.run("delete table bridge aetherscale-try")
    nftables.close()
    return listed


def written(setting: str) -> str:
    """Why a setting cannot be written as it is; "" where it can."""
    path = Path("/proc/sys", setting)
    try:
        path.write_text(path.read_text())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def unshared(*kinds: str) -> str:
    """Why there are no such namespaces; "" where there are."""
    options = [f"--{kind}" for kind in kinds]
    if "mount" in kinds:
        options.append("--propagation=unchanged")  # else it is mount(2) that is refused
    command = ["unshare", "--user", "--map-current-user", "--keep-caps", *options, "--", "true"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()


def everything() -> dict[str, Any]:
    """All of it."""
    return {
        "devices": asyncio.run(devices()),
        "table": table(),
        "forwarding": written("net/ipv4/ip_forward"),
        "others": {setting: written(setting) for setting in OTHERS},
        "net": unshared("net"),
        "kinds": {kind: unshared("net", kind) for kind in KINDS},
    }


if __name__ == "__main__":
    seen = [[each.status, each.check, each.found] for each in needs.findings(Settings(STATE_DIR, NODE))]
    json.dump({"findings": seen, **(everything() if sys.argv[1:] == ["all"] else {})}, sys.stdout)
