"""The life of a network.

    creating ──NetworkUp──▶ ready ──NetworkDown──▶ restoring ──NetworkUp──▶ ready
        │                     └──NetworkDeleteRequested──▶ deleting ──NetworkDeleted──▶ deleted
        └── NetworkStepFailed (for good), NetworkUndone ──────▲

A network that could not be made is rolled back: its name and its prefixes are free again. One that was ready is never
given up: it is restored until somebody deletes it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from aetherscale.actors.network.model import effects, events
from aetherscale.actors.network.model.commands import CreateNetwork, DeleteNetwork, NetworkCommand, NetworkLost
from aetherscale.actors.network.model.effects import NetworkEffect, NetworkOutcome
from aetherscale.actors.network.model.events import NetworkEvent
from aetherscale.actors.network.model.state import TRANSITIONS, Network
from aetherscale.kernel.attempts import FIRST, backoff
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.failures import EffectFailed, Failure
from aetherscale.kernel.reservations import in_use

NetworkMessage = NetworkCommand | NetworkOutcome

LONGEST_WAIT: Final = 6
"""The number of the attempt to restore a network after which its wait grows no more: 32 s. Each failure is an event."""


def decide(network: Network | None, message: NetworkMessage, at_us: int) -> Sequence[NetworkEvent]:
    """The events that follow. Raises `Refused` for callers only."""
    if isinstance(message, CreateNetwork):
        if network is not None:
            raise Refused(Reason.CONFLICT, f"the network {message.network_id} exists already")
        return (events.NetworkRequested(message.network_id, message.spec),)
    if isinstance(message, DeleteNetwork):
        return _delete(network, message)
    if network is None or network.phase == "deleted":
        return ()
    match message:
        case NetworkLost():
            return _lost(network, message)
        case effects.NetworkEnsured():
            return (events.NetworkUp(message.boot_id),) if network.phase in ("creating", "restoring") else ()
        case effects.NetworkRemoved():
            return (events.NetworkDeleted(),) if network.phase == "deleting" else ()
        case EffectFailed():
            return _failed(network, message, at_us)


def _delete(network: Network | None, command: DeleteNetwork) -> Sequence[NetworkEvent]:
    if network is None or network.phase == "deleted":
        raise Refused(Reason.NOT_FOUND, "no such network: it has been deleted" if network else "no such network")
    if network.phase == "deleting" and not network.attempt.blocked:
        return ()
    if command.used_by:
        first = Task("vm", "show", command.used_by[0].name)
        remedy = ("detach each from it, or delete it where this is its only network; of the first: ", first)
        raise in_use(f"the network {network.name!r}", command.used_by, remedy)
    return (events.NetworkDeleteRequested(),)


def _lost(network: Network, lost: NetworkLost) -> Sequence[NetworkEvent]:
    """What is being made or taken away is not missed; what is restored already need not be told twice."""
    if network.phase == "ready" or (network.phase == "restoring" and network.down != lost.what):
        return (events.NetworkDown(lost.what, lost.by),)
    return ()


def _failed(network: Network, failed: EffectFailed, at_us: int) -> Sequence[NetworkEvent]:
    number = network.attempt.number
    if network.phase == "restoring":
        # VMs need it, and whatever is in its way may go: it is tried again for ever.
        retry_at: str | None = backoff(at_us, min(number, LONGEST_WAIT))
    else:
        retry_at = network.attempt.retry_at(at_us, retryable=failed.retryable)
    event = events.NetworkStepFailed(
        step=network.phase,
        attempt=number,
        reason=failed.reason,
        hint=failed.hint,
        log_tail=failed.log_tail,
        retry_at=retry_at,
    )
    undo = retry_at is None and network.phase == "creating"
    return (event, events.NetworkUndone()) if undo else (event,)


def evolve(network: Network | None, event: NetworkEvent, at_us: int) -> Network:
    """The network after an event; never fails on a stream that `decide` has written."""
    if isinstance(event, events.NetworkRequested):
        return Network(event.network_id, event.spec, "creating", at_us)
    assert network is not None, f"a network's stream begins with its request, not with {type(event).__name__}"
    phase = TRANSITIONS[type(event)].get(network.phase, network.phase)
    after = _facts(replace(network, phase=phase), event)
    moved = (after.phase, after.is_failed) != (network.phase, network.is_failed)
    return replace(after, phase_since_us=at_us) if moved else after


def _facts(
    network: Network,
    event: events.NetworkUp
    | events.NetworkDown
    | events.NetworkStepFailed
    | events.NetworkUndone
    | events.NetworkDeleteRequested
    | events.NetworkDeleted,
) -> Network:
    match event:
        case events.NetworkUp():
            return replace(network, boot_id=event.boot_id, down="", attempt=FIRST, failure=None)
        case events.NetworkDown():
            return replace(network, down=event.what, attempt=FIRST)
        case events.NetworkStepFailed():
            attempt = network.attempt.after_failure(event.attempt, event.retry_at)
            if event.retry_at is not None and network.phase != "restoring":
                return replace(network, attempt=attempt)
            failure = Failure(event.step, event.reason, event.hint, event.log_tail)
            # Of a rollback the first failure is the reason; while it is restored, the newest is what is in its way.
            kept = failure if network.phase == "restoring" else network.failure or failure
            return replace(network, failure=kept, attempt=attempt)
        case events.NetworkUndone():
            return replace(network, rolled_back=True, attempt=FIRST)
        case events.NetworkDeleteRequested():
            return replace(network, failure=None, attempt=FIRST)
        case events.NetworkDeleted():
            return network


def pending(network: Network) -> NetworkEffect | None:
    """The one piece of work that is pending on the host now."""
    attempt = network.attempt
    if attempt.blocked:
        return None
    match network.phase:
        case "creating" | "restoring":
            return effects.EnsureNetwork(
                f"ensure-{attempt.number}", network.id, network.spec, not_before_us=attempt.not_before_us
            )
        case "deleting":
            return effects.RemoveNetwork(
                f"remove-{attempt.number}", network.id, network.spec, not_before_us=attempt.not_before_us
            )
        case "ready" | "deleted":
            return None


NETWORKS: Final[Decider[Network, NetworkMessage, NetworkEvent, NetworkEffect]] = Decider(decide, evolve, pending)
