"""A program that sets a bridge up, confirms it or undoes it, and dies before the change of the host of that number.

python -m tests.support.bridge_taker TASK NUMBER HOW RUN KEPT UNITS
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from aetherscale.actors.network.netlink.direct import Direct
from aetherscale.actors.network.netlink.encoding import RTM_GETLINK
from aetherscale.gateways.cli.program import BridgeAsked
from aetherscale.setup.bridgetrial import Places
from aetherscale.setup.hostbridge import Bridges
from tests.support.uplink_world import guard

LONG_S = 600.0
SIGNALS = {"kill": signal.SIGKILL, "end": signal.SIGTERM, "stop": signal.SIGSTOP}


def main(words: list[str]) -> None:
    """Do the task; whether it came to its end is told by the exit status."""
    task, number, ending, *paths = words
    left = int(number)
    ask, write, unlink = Direct.ask, Path.symlink_to, Path.unlink

    def count() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), SIGNALS[ending])
        left -= 1

    def counted(self: Direct, kind: int, how: int, body: bytes) -> list[bytes]:
        if kind != RTM_GETLINK:
            count()
        return ask(self, kind, how, body)

    def before(work: Any) -> Any:
        def do(*arguments: Any, **options: Any) -> Any:
            count()
            return work(*arguments, **options)

        return do

    Direct.ask = counted  # type: ignore[method-assign]
    Path.symlink_to = before(write)  # type: ignore[method-assign]
    Path.unlink = before(unlink)  # type: ignore[method-assign]
    places = Places(*map(Path, paths))
    bridges = Bridges(places, period_s=0.5 if ending == "stop" else LONG_S, guard=_guard, root=places.run / "no-root")
    if task == "set-up":
        list(bridges.set_up(BridgeAsked("eth0", "br0"), dry_run=False))
    elif task == "confirm":
        list(bridges.confirm(dry_run=False))
    else:
        list(bridges.undo(dry_run=False))


def _guard(places: Places) -> None:
    guard(places)
    (places.run / "guarded").touch()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(sys.argv[1:])
