"""The guard of a bridge on trial: a process of its own, which takes the bridge back unless it is confirmed in time.

    python -m aetherscale.setup.bridgeguard [RUN KEPT UNITS]

It is there, with all that it needs in memory, before anything of the host is changed. It depends on no terminal, no
session and no network. It acts at the end of the time, and at once where the process that sets the bridge up has died.
It is done when no trial is recorded any more.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

from aetherscale.actors.network.netlink.direct import Failed
from aetherscale.actors.network.netlink.uplink import Uplinks
from aetherscale.kernel.errors import Refused
from aetherscale.setup import bridgekeeping
from aetherscale.setup.bridgetrial import BUSY_S, POLL_S, Places, Trial, acting, is_acting, namespace, read_trial

WRONG_PLACE = 3
"""The exit status where the trial is in another network namespace."""


def main(words: list[str]) -> int:
    """Guard the trial that is recorded; the exit status."""
    places = Places(*map(Path, words)) if words else Places()
    trial = read_trial(places)
    if trial is None:
        _tell("READY=1")
        return 0
    if trial.namespace != namespace():
        _say("the bridge is in another network namespace than systemd")
        return WRONG_PLACE
    with closing(Uplinks()) as uplinks:
        _tell("READY=1")
        while (trial := read_trial(places)) is not None and not (_is_due(trial, places)):
            time.sleep(POLL_S)
        while trial is not None:
            try:
                with acting(places, wait_s=BUSY_S):
                    # Confirmed meanwhile: then there is none.
                    if (trial := read_trial(places)) is not None:
                        take_back(trial, places, uplinks)
                return 0
            except (Failed, OSError, Refused) as failed:
                _say(f"{trial.uplink.device if trial else ''} is not as it was: {failed}; once more in a second")
                time.sleep(1.0)
    return 0


def take_back(trial: Trial, places: Places, uplinks: Uplinks) -> None:
    """Let the host be as it was before the trial, now and at each boot. The lock is held.

    Raises `Failed`, `OSError`, `Refused`.
    """
    bridgekeeping.forget(places)
    uplinks.give_back(trial.uplink)
    places.trial.unlink(missing_ok=True)
    _say(f"{trial.uplink.device} is as it was before {trial.uplink.bridge}")


def _is_due(trial: Trial, places: Places) -> bool:
    """Whether the time is over, or the process that was to bring it to an end has died on the way."""
    if trial.left_s <= 0:
        return True
    if trial.state == "taken" or is_acting(places):
        return False
    # It may have come to its end between the two looks.
    again = read_trial(places)
    return again is not None and again.state != "taken"


def _say(text: str) -> None:
    sys.stderr.write(f"aetherscale: {text}\n")
    sys.stderr.flush()


def _tell(text: str) -> None:
    """Tell the process that waits for this one: sd_notify(3)."""
    if place := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), "\0" + place[1:] if place.startswith("@") else place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
