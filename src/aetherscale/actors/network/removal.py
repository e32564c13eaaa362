"""What nodes have left of networks in this network namespace, and how all of one node is taken away.

For a node that has ended and never comes back: a node that runs looks after its networks itself.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from aetherscale.actors.network.claim import claim
from aetherscale.actors.network.dnsmasq.resolvers import Resolvers
from aetherscale.actors.network.firewall import Firewall
from aetherscale.actors.network.hands import remove_devices
from aetherscale.actors.network.model.devices import BRIDGE_PREFIX, ROUTER_PREFIX, SERVICE_PREFIX, TAP_PREFIX
from aetherscale.actors.network.model.marks import TABLES
from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.nft.nftables import Nftables
from aetherscale.kernel.fault import Fault

_DEVICE: Final = re.compile(rf"(?:{BRIDGE_PREFIX}|{TAP_PREFIX}|{SERVICE_PREFIX}|{ROUTER_PREFIX})[0-9a-f]{{12}}")


def present() -> Sequence[str]:
    """The devices and tables of networks, of whichever node, whether it runs or not.

    Raises `OSError` where nftables cannot be asked, `NftError` where this process may not.
    """
    with closing(Nftables()) as nft:
        tables = [line for line in nft.run("list tables").splitlines() if line.split()[-1] in TABLES]
    return (*_devices(), *tables)


async def remove_all(node: str, state_dir: Path) -> None:
    """Take away all that a node has left of networks: resolvers, taps, bridges, then the rules.

    The guests in them have ended. The rules are left alone where another node has them by now, which has replaced them,
    and where there are devices of another that does not run, whose guests may. Raises `Fault`, `OSError`.
    """
    resolvers, links = Resolvers(state_dir, node, lambda network_id, words: None), Links(node)
    try:
        await resolvers.start()
        await resolvers.reconcile(())
        await links.open()
        await remove_devices(links, (), ())
    finally:
        await links.close()
        await resolvers.close()
    if _devices():
        return
    try:
        taken = claim()
    except Fault:
        return
    with closing(taken):
        firewall = Firewall(Nftables())
        try:
            await firewall.remove()
        finally:
            await firewall.close()


def _devices() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex() if _DEVICE.fullmatch(name))
