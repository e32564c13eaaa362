"""A network, as its events add up, and from which phase an event brings it to which. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from aetherscale.actors.network.model import events
from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.actors.network.model.events import NetworkEvent
from aetherscale.kernel.attempts import FIRST, Attempt
from aetherscale.kernel.failures import Failure

NetworkPhase = Literal["creating", "ready", "restoring", "deleting", "deleted"]
"""`restoring`: a part of it is gone, and is made again, which does not end before it is there."""


class Network(Struct, frozen=True):
    """One network."""

    id: str
    spec: NetworkSpec
    phase: NetworkPhase
    phase_since_us: int
    boot_id: str = ""
    """The time since the host was started last, in which all of it was there; "" where it never was."""
    down: str = ""
    """What is wrong while it is being restored."""
    rolled_back: bool = False
    """Whether it could not be made, so that what was made of it is removed."""
    attempt: Attempt = FIRST
    """Which attempt at the step that is pending now; one that is blocked is shown as failed."""
    failure: Failure | None = None

    @property
    def name(self) -> str:
        """The name that it bears until it is deleted."""
        return self.spec.name

    @property
    def is_failed(self) -> bool:
        """Whether it needs somebody who looks at it."""
        return self.attempt.blocked


TRANSITIONS: Final[Mapping[type[NetworkEvent], Mapping[NetworkPhase, NetworkPhase]]] = {
    events.NetworkUp: {"creating": "ready", "restoring": "ready"},
    events.NetworkDown: {"ready": "restoring", "restoring": "restoring"},
    events.NetworkStepFailed: {each: each for each in ("creating", "restoring", "deleting")},
    events.NetworkUndone: {"creating": "deleting"},
    events.NetworkDeleteRequested: dict.fromkeys(("creating", "ready", "restoring", "deleting"), "deleting"),
    events.NetworkDeleted: {"deleting": "deleted"},
}
"""What the table does not have no stream has either; such an event leaves the phase as it is."""
