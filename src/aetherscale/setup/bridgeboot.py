"""What `aetherscale-bridge.service` does at each boot: the bridge takes the place of its device again.

    python -m aetherscale.setup.bridgeboot /etc/aetherscale/bridge.json

Where that fails the device itself gets the addresses and routes, so that the host can be reached.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.actors.network.netlink.direct import Failed
from aetherscale.actors.network.netlink.uplink import Uplink, Uplinks

DEVICE_S: Final = 60.0
"""How long the device may take to appear."""
POLL_S: Final = 0.1


def main(words: list[str]) -> int:
    """Make the bridge that the file says; the exit status."""
    uplink = msgspec.json.decode(Path(words[0]).read_bytes(), type=Uplink)
    with closing(Uplinks()) as uplinks:
        until_s = time.monotonic() + DEVICE_S
        while (device := uplinks.device(uplink.device)) is None:
            if time.monotonic() > until_s:
                sys.stderr.write(f"aetherscale: there is no device {uplink.device}\n")
                return 1
            time.sleep(POLL_S)
        uplink = msgspec.structs.replace(uplink, index=device.link.index)
        try:
            uplinks.take_over(uplink)
            return 0
        except Failed as failed:
            sys.stderr.write(f"aetherscale: {uplink.bridge}: {failed}; {uplink.device} gets its addresses instead\n")
            uplinks.give_back(msgspec.structs.replace(uplink, before=uplink.wanted))
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
