"""The life of a VM, for `docs/states.md`: made of the tables that the fold itself goes by."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Final

from aetherscale.actors.compute.model.pending import PENDING
from aetherscale.actors.compute.model.state import SHOWN, VmPhase
from aetherscale.actors.compute.model.transitions import edges
from aetherscale.kernel.lifecycle import Lifecycle, Phase, Transition

MEANINGS: Final[Mapping[VmPhase, str]] = {
    "provisioning": "Its disk is being made.",
    "booting": "QEMU is being started.",
    "running": "QEMU runs, and the guest has not reported that it is ready.",
    "ready": "The guest has reported that it is ready.",
    "paused": "QEMU has stopped the virtual CPUs.",
    "shutting-down": "The guest has been asked to power down, and has its time to do so.",
    "ending": "Its process is being ended; the guest is not asked, or no more.",
    "stopped": "It is at rest.",
    "failed": "It has crashed, or the host has refused a step for good.",
    "clearing": "It is at rest, but may have an orphaned process, which is being ended.",
    "failing": "It has failed, and may have an orphaned process, which is being ended.",
    "removing": "All that it has on the host is being removed.",
    "rolling-back": "It never ran, and what was made of it is being removed.",
    "quarantining": "The host has something of it although it is deleted or unknown; that is being quarantined.",
    "deleted": "Nothing of it is left on the host.",
}

PARTS: Final[Mapping[str, tuple[VmPhase, ...]]] = {
    "Coming up, and being up": ("provisioning", "booting", "running", "ready", "paused"),
    "Going down": ("shutting-down", "ending"),
    "At rest": ("stopped", "failed", "clearing", "failing"),
    "Going away": ("removing", "rolling-back", "quarantining", "deleted"),
}


def _effect(phase: VmPhase) -> str | None:
    returned = typing.get_type_hints(PENDING[phase])["return"]
    named = [each.__name__ for each in (*typing.get_args(returned), returned) if isinstance(each, type)]
    return " or ".join(name for name in named if name != "NoneType") or None


LIFECYCLE: Final = Lifecycle(
    phases={phase: Phase(SHOWN[phase], _effect(phase), about) for phase, about in MEANINGS.items()},
    transitions=[Transition(source, event.__name__, target) for source, event, target in edges()],
    parts=PARTS,
)
