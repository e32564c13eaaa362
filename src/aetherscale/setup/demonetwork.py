"""The network of the demo: whether this host allows it one, and that nothing is left of it, however the demo ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from aetherscale.actors.network import lacks, needs, removal
from aetherscale.actors.network.claim import claim
from aetherscale.actors.network.nft.nftables import NftError
from aetherscale.kernel.fault import Fault
from aetherscale.settings import Settings

AS_ROOT: Final = "run the demo as root: sudo ./justw demo"
DOCTOR: Final = "aetherscale doctor says more"
OTHERS: Final = "delete its networks first, or run the demo on another host"


class Lacking(NamedTuple):
    """Why there is no network, and what to type for one."""

    reason: str
    remedy: str


def lacking(node: str, state_dir: Path) -> Lacking | None:
    """Why there can be no network here for a node that has none yet, and what to type; None where there can be one.

    A node that has networks has them for itself, also while it does not run: its rules are still in force.
    """
    found = list(needs.missing(needs.look(Settings(state_dir, node))))
    if found:
        check, why, remedy = found[0]
        if check == "networks" and os.geteuid() != 0:
            return Lacking("only root can make one", AS_ROOT)
        return Lacking(why, f"{remedy}; {DOCTOR}" if len(found) > 1 else remedy)
    try:
        claim().close()
        present = removal.present()
    except Fault as taken:
        return Lacking(taken.reason, taken.remedy)
    except (OSError, NftError) as failure:
        return Lacking(f"nftables cannot be asked: {failure}", "aetherscale doctor")
    return Lacking(f"another node has networks on this host ({', '.join(present)})", OTHERS) if present else None


def staying() -> str | None:
    """Why no port of the host can lead into a network here; None where one can."""
    lacking = lacks.forwarding()
    return f"No port of the host leads into it: {lacking.reason}; {DOCTOR}." if lacking is not None else None


def remove(node: str, state_dir: Path) -> None:
    """Take away what is left of networks of a node that has ended. Raises `Fault`, `OSError`."""
    asyncio.run(removal.remove_all(node, state_dir))


def left() -> Sequence[str]:
    """What is there of networks, where before the demo there was nothing. Raises `OSError`, `NftError`."""
    return removal.present()
