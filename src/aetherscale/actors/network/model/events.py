"""What has happened to a network. Kept for ever: change a shape only with a new schema version."""

from __future__ import annotations

from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.kernel.messages import Event

KIND = "network"
"""The kind of a network's stream."""


class NetworkRequested(Event, frozen=True):
    """A caller requested a network."""

    network_id: str
    """The id of the new network, 16 hex digits."""
    spec: NetworkSpec
    """What the network is: its prefixes are decided here, and are the same for ever."""


class NetworkUp(Event, frozen=True):
    """All of the network is on the host as it is to be: its rules, and where the bridge is its own that, the host's
    addresses in it and its resolver. What was made for it and what was there still is not told.
    """

    boot_id: str
    """The time since the host was started last, in which they are there."""


class NetworkDown(Event, frozen=True):
    """A part of the network is no longer on the host as it was made; it is mended."""

    what: str
    """What was found, in words."""
    by: str
    """Who did it, where that is known: the name and the id of a process; "" for unknown."""


class NetworkStepFailed(Event, frozen=True):
    """The host could not carry out a step."""

    step: str
    """The step that failed: `creating`, `restoring` or `deleting`."""
    attempt: int
    """Which attempt at the step this was: 1, 2, 3 …."""
    reason: str
    """The failure, in one sentence: the attempt, and the error."""
    hint: str
    """The remedy, for the user; "" for none."""
    log_tail: str
    """The end of the log that shows it, at most 2,000 characters; "" for none."""
    retry_at: str | None
    """When the step is tried again at the earliest, RFC 3339 in UTC; null where it is not tried again."""


class NetworkUndone(Event, frozen=True):
    """The network was never complete, and what was made of it is removed."""


class NetworkDeleteRequested(Event, frozen=True):
    """A caller requested the deletion."""


class NetworkDeleted(Event, frozen=True):
    """Nothing of the network is left on the host."""


NetworkEvent = (
    NetworkRequested
    | NetworkUp
    | NetworkDown
    | NetworkStepFailed
    | NetworkUndone
    | NetworkDeleteRequested
    | NetworkDeleted
)
