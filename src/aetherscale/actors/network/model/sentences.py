"""What happened to a network, and how it stands, in sentences. Pure."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.network.model import events
from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.actors.network.model.events import NetworkEvent
from aetherscale.actors.network.model.state import Network
from aetherscale.kernel.descriptions import Description, Descriptions, consequence, observation, request
from aetherscale.kernel.failures import told


def describe(network: Network | None, event: NetworkEvent) -> Description:
    """An event in words; `network` is the state before it, None before the first."""
    match event:
        case events.NetworkRequested():
            return request(f"asked to create the network {event.spec.name!r}: {_spec(event.spec)}")
        case events.NetworkUp():
            assert network is not None, "a network's stream begins with its request"
            again = network.phase == "restoring"
            return consequence(f"{_parts(network.spec)} {'were in place again' if again else 'were made'}")
        case events.NetworkDown():
            by = f", by {event.by}" if event.by else ""
            return observation(f"a part of it was lost on the host: {event.what}{by}")
        case events.NetworkStepFailed():
            return consequence(told(event.step, event.attempt, event.retry_at, event.reason))
        case events.NetworkUndone():
            return consequence("it had never been complete, so what had been made of it was to be removed")
        case events.NetworkDeleteRequested():
            return request("asked to delete it")
        case events.NetworkDeleted():
            return consequence("it was removed from the host, and its name and its prefixes were free again")


def summarize(network: Network) -> str:
    """How the network stands now, and what is awaited."""
    failure = network.failure
    if network.is_failed:
        assert failure is not None
        return f"{failure.phase}: {failure.reason}"
    match network.phase:
        case "creating":
            return f"{_parts(network.spec)} are being made"
        case "ready":
            return f"VMs can be in it: {_spec(network.spec)}"
        case "restoring":
            hindered = f"; so far it cannot be: {failure.reason}" if failure else ""
            return f"it is being mended, since a part of it was lost: {network.down}{hindered}"
        case "deleting":
            return "it is being removed from the host"
        case "deleted":
            if network.rolled_back and failure:
                return f"it was never complete: {failure.phase}: {failure.reason}"
            return "nothing of it is left on the host"


def _parts(spec: NetworkSpec) -> str:
    """What of a network is ensured together, lost or not."""
    match spec.kind:
        case "isolated":
            return "its rules, its bridge and its resolver"
        case "nat":
            return "its rules, its bridge, the host's addresses in it and its resolver"
        case "bridged" | "public":
            return "its rules"


def _spec(spec: NetworkSpec) -> str:
    prefixes = " and ".join(prefix for prefix in (spec.ipv6, spec.ipv4) if prefix) or "no prefix of ours"
    kind = f"{spec.kind}, the bridge {spec.bridge}" if spec.kind == "public" else spec.kind
    kind = f"bridged to {spec.bridge}" if spec.kind == "bridged" else kind
    return f"{kind}, {prefixes}"


NETWORK_DESCRIPTIONS: Final[Descriptions[Network]] = Descriptions(describe, summarize)
