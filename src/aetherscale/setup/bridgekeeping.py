"""What makes a bridge of the host outlive a reboot, once it is confirmed: a file, and a unit that does as it says.

The unit runs after what has configured the device until now, as ifupdown, and before what waits for the network.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.actors.network.netlink import holdings
from aetherscale.actors.network.netlink.holdings import Holdings
from aetherscale.actors.network.netlink.uplink import Uplink
from aetherscale.setup.bridgetrial import Places, read_kept
from aetherscale.setup.hostwork import SYSTEMD, run, write

UNIT: Final = "aetherscale-bridge.service"
WANTS: Final = "multi-user.target.wants"

_UNIT: Final = """\
# Written by `aetherscale host setup bridge --confirm`, and removed by `aetherscale host setup bridge --undo`.
[Unit]
Description=aetherscale: the bridge {bridge} in the place of {device}
Documentation=file:{kept}
RequiresMountsFor={kept} {python}
Wants=network.target
After=network-pre.target networking.service ifup@{device}.service systemd-udev-settle.service
Before=network.target network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={python} -m aetherscale.setup.bridgeboot {kept}
TimeoutStartSec=120

[Install]
WantedBy=multi-user.target
"""


def lasting(uplink: Uplink) -> Uplink:
    """What of a bridge is for ever: what has an end comes anew, from the routers that said it."""
    return msgspec.structs.replace(uplink, before=_lasting(uplink.before), wanted=_lasting(uplink.wanted))


def keep(uplink: Uplink, places: Places) -> None:
    """Have each boot make this bridge. The link that has systemd start it comes last. Raises `OSError`, `Refused`."""
    for directory in (places.kept.parent, places.units / WANTS):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    write(places.kept, msgspec.json.format(msgspec.json.encode(lasting(uplink))).decode() + "\n", 0o600)
    text = _UNIT.format(bridge=uplink.bridge, device=uplink.device, kept=places.kept, python=sys.executable)
    write(places.units / UNIT, text)
    os.sync()
    if not _link(places).is_symlink():
        _link(places).symlink_to(places.units / UNIT)
    _reload(places)
    os.sync()


def is_kept(uplink: Uplink, places: Places) -> bool:
    """Whether each boot makes just this bridge."""
    return read_kept(places) == lasting(uplink) and _link(places).is_symlink() and (places.units / UNIT).is_file()


def forget(places: Places) -> None:
    """Have no boot make it any more; the link goes first. Raises `OSError`, `Refused`."""
    was_kept = places.kept.is_file()
    for path in (_link(places), places.units / UNIT, places.kept):
        path.unlink(missing_ok=True)
    if was_kept:
        with suppress(OSError):  # the settings of a node may be in it
            places.kept.parent.rmdir()
    _reload(places)
    os.sync()


def _link(places: Places) -> Path:
    return places.units / WANTS / UNIT


def _reload(places: Places) -> None:
    if SYSTEMD.is_dir() and places == Places():
        run("systemctl", "daemon-reload")


def _lasting(held: Holdings) -> Holdings:
    return Holdings(
        tuple(each for each in held.addresses if holdings.is_for_ever(each)),
        tuple(each for each in held.routes if not holdings.expires(each)),
    )
