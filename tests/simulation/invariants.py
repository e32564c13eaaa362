"""What has to hold, looked at from outside of the node: the log, the host, the broker, and what callers were told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.presentation import VM_KIND, holds
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.firewall.model.decide import GROUPS
from aetherscale.actors.firewall.model.presentation import GROUP_KIND
from aetherscale.actors.firewall.model.state import Group
from aetherscale.actors.images.model.decide import IMAGES, Image
from aetherscale.actors.images.model.presentation import IMAGE_KIND
from aetherscale.actors.images.model.views import USABLE
from aetherscale.actors.network.model.decide import NETWORKS
from aetherscale.actors.network.model.presentation import NETWORK_KIND
from aetherscale.actors.network.model.state import Network
from aetherscale.kernel.messages import event_id
from aetherscale.kernel.registry import Aggregate, Kind, Registry, apply
from aetherscale.kernel.reservations import Holding, Use, stream_of
from aetherscale.kernel.wire import encode
from tests.simulation.catalogued import check_keys_asked_for, check_reasons_of_images
from tests.simulation.clients import Asked
from tests.simulation.groups import check_uses_of_groups, keys_of_group
from tests.simulation.inits import check_scripts, check_scripts_at_rest, check_secret
from tests.simulation.invariants_of_networks import check_networks_of_vms, check_told_deeds, keys_of_network, keys_of_vm
from tests.simulation.oracle import told
from tests.simulation.reasons import check_reasons
from tests.simulation.world import CODEC, EPOCH, NODE, Violation, World
from tests.support.port_component import PORTS, Port

STREAM = f"AETHER_EVT_{NODE}"


class Folded:
    """The whole log, folded from its first event."""

    def __init__(self, world: World) -> None:
        self.vms: Registry[Vm] = Registry()
        self.images: Registry[Image] = Registry()
        self.networks: Registry[Network] = Registry()
        self.groups: Registry[Group] = Registry()
        self.ports: Registry[Port] = Registry()
        self.requests: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for stored in world.log.events:
            recorded = CODEC.decode(stored)
            apply(VM_KIND, self.vms, recorded)
            apply(IMAGE_KIND, self.images, recorded)
            apply(NETWORK_KIND, self.networks, recorded)
            apply(GROUP_KIND, self.groups, recorded)
            apply(PORTS.kind, self.ports, recorded)
            self.requests.setdefault((stored.tenant, stored.command_id), []).append((stored.seq, stored.type))

    def aggregates(self) -> Iterable[Aggregate[Vm]]:
        return self.vms.aggregates.values()

    def pending(self) -> list[str]:
        """What is still to be done."""
        vms = [(f"vm {aggregate.id}", COMPUTE.pending(aggregate.state)) for aggregate in self.aggregates()]
        images = [
            (f"image {aggregate.id}", IMAGES.pending(aggregate.state)) for aggregate in self.images.aggregates.values()
        ]
        networks = [(f"network {each.id}", NETWORKS.pending(each.state)) for each in self.networks.aggregates.values()]
        groups = [(f"group {each.id}", GROUPS.pending(each.state)) for each in self.groups.aggregates.values()]
        return [f"{what}: {effect.key}" for what, effect in (*vms, *images, *networks, *groups) if effect is not None]


def check_log(world: World, asked: Iterable[Asked]) -> None:
    """A and B: what was acknowledged is there, once. Holds at any moment."""
    events, stream = world.log.events, world.jetstream.streams.get(STREAM)
    require([each.seq for each in events] == list(range(1, len(events) + 1)), "the log has a gap")
    for name, found in world.log.streams.items():
        require([each.version for each in found] == list(range(1, len(found) + 1)), f"{name} has a gap")
    folded = Folded(world)
    check_uses(folded)
    check_keys(folded)
    check_networks_of_vms(folded)
    check_told_deeds(world)
    check_uses_of_groups(folded)
    check_scripts(world, folded.aggregates())
    check_secret(events, [message.body for message in stream.messages] if stream else [])
    check_views(world, folded)
    check_reasons(events, world.deaths)
    check_reasons_of_images(events)
    check_keys_asked_for(events, asked)
    for request in asked:
        accepted = world.log.commands.get((request.tenant, request.key))
        require(accepted is not None or not request.acknowledged, f"{request.key} was acknowledged and is lost")
        seqs = [seq for seq, _ in folded.requests.get((request.tenant, request.key), [])]
        allowed = range(accepted.first_seq, accepted.last_seq + 1) if accepted else range(0)
        require(all(seq in allowed for seq in seqs), f"{request.key} had a second effect: {seqs} beside {allowed}")


def check_views(world: World, folded: Folded) -> None:
    """Every field of every view is what the oracle makes of the same events."""
    vms, images, networks, groups = told(world.log.events, NODE)
    kinds: tuple[tuple[Kind[Any], dict[str, Any], Registry[Any]], ...] = (
        (VM_KIND, vms, folded.vms),
        (IMAGE_KIND, images, folded.images),
        (NETWORK_KIND, networks, folded.networks),
        (GROUP_KIND, groups, folded.groups),
    )
    for kind, views, registry in kinds:
        for aggregate_id, aggregate in registry.aggregates.items():
            check_view(
                views[aggregate_id],
                msgspec.json.decode(
                    encode(kind.view(aggregate.state, NODE, aggregate.version, aggregate.requested_by))
                ),
            )


def check_view(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """One view, in the words of those who know it by another way."""
    wrong = {name: (wanted.get(name), found.get(name)) for name in wanted.keys() | found.keys()}
    wrong = {name: each for name, each in wrong.items() if each[0] != each[1]}
    require(not wrong, f"{found['name']} ({found['id']}): expected and found {wrong}")


def check_uses(folded: Folded) -> None:
    """What a VM is made of is there for as long as the VM is, at any moment, whoever raced with whom."""
    used: dict[str, set[str]] = {}
    for aggregate in folded.aggregates():
        if any(isinstance(each, Use) and each.kind == "image" for each in holds(aggregate.state)):
            used.setdefault(aggregate.state.spec.image_id, set()).add(aggregate.id)
    for image_id, vms in used.items():
        image = folded.images.aggregates[image_id].state
        require(image.phase in USABLE, f"image {image_id} is {image.phase}, and {sorted(vms)} are made of it")
    for image_id in folded.images.aggregates:
        held = set(folded.images.uses_of("image", image_id).users)
        require(
            held == used.get(image_id, set()), f"image {image_id}: reserved by {held}, used by {used.get(image_id)}"
        )


def check_keys(folded: Folded) -> None:
    """What only one may have one has, and the reservations say who: names in their tenants, addresses, prefixes."""
    kinds: tuple[tuple[Registry[Any], Callable[[Any], Iterable[Holding]]], ...] = (
        (folded.ports, PORTS.holds),
        (folded.vms, keys_of_vm),
        (folded.networks, keys_of_network),
        (folded.groups, keys_of_group),
    )
    for registry, keys in kinds:
        held: dict[str, str] = {}
        for aggregate_id, aggregate in registry.aggregates.items():
            for each in keys(aggregate.state):
                stream = stream_of(each, aggregate.tenant)
                require(stream not in held, f"{each} is that of {held.get(stream)} and {aggregate_id}")
                held[stream] = aggregate_id
        reserved = {stream: holder.owner for stream, holder in registry.holders.items() if holder.owner is not None}
        require(reserved == held, f"reserved is {reserved}, held {held}")


def check_host(world: World, folded: Folded) -> None:
    """C, once nothing is pending: what is on the host is what the log says."""
    vms = {aggregate.id: aggregate.state for aggregate in folded.aggregates()}
    running = {vm_id for vm_id, vm in vms.items() if vm.observed in ("running", "paused")}
    live = {vm_id for vm_id in world.host.processes if world.host.live(vm_id) is not None}
    # What the host has refused to end for good is told as failed, and left until somebody asks again.
    refused = {vm_id for vm_id, vm in vms.items() if vm.attempt.blocked}
    found = f"the log says that {sorted(running)} run, the host has {sorted(live)}"
    require(running <= live and live - running <= refused, found)
    for vm_id in running:
        process, vm = world.host.processes[vm_id], vms[vm_id]
        known = vm.run.process and (vm.run.process.pid, vm.run.process.start_ticks, vm.run.process.boot_id)
        require(known == (process.pid, process.start_ticks, process.boot_id), f"{vm_id}: another process: {known}")
        require(vm.phase != "ready" or process.is_ready, f"{vm_id} is called ready and is not")
    check_scripts_at_rest(world, vms)
    there = {vm_id for vm_id, vm in vms.items() if vm.phase != "deleted"}
    kept = {vm_id for vm_id in there if vms[vm_id].has_disk and vms[vm_id].requested != "deleted"}
    missing = kept - world.host.disks.keys()
    require(not missing, f"disks are missing: {sorted(missing)}")
    left = world.host.disks.keys() - there
    require(not left, f"disks are left over: {sorted(left)}")
    images = {aggregate.id: aggregate.state.phase for aggregate in folded.images.aggregates.values()}
    require(
        {i for i, phase in images.items() if phase in USABLE} <= world.images.images, f"images are missing: {images}"
    )
    require(
        not [i for i in world.images.images if images.get(i) in (None, "deleted")], f"images are left over: {images}"
    )
    for vm_id, vm in vms.items():
        resting = vm.requested == "running" and vm.shown in ("running", "ready", "paused", "failed")
        resting |= vm.requested == "stopped" and vm.shown in ("stopped", "failed")
        resting |= vm.requested == "deleted" and (vm.phase == "deleted" or vm.attempt.blocked)
        require(resting, f"{vm_id} was asked to be {vm.requested} and rests {vm.shown}")


def check_stream(world: World) -> None:
    """Every event is in the stream once, at its place."""
    stream = world.jetstream.streams.get(STREAM)
    require(stream is not None, "there is no stream")
    assert stream is not None
    found = [(each.seq, each.message_id) for each in stream.messages]
    wanted = [(each.seq, event_id(NODE, EPOCH, each.seq)) for each in world.log.events]
    require(found == wanted, f"the stream ends {found[-2:]}, the log {wanted[-2:]}; {len(found)} and {len(wanted)}")
    for message, stored in zip(stream.messages, world.log.events, strict=True):
        body = msgspec.json.decode(message.body)
        told = (body["type"], int(body["sequence"]), body["commandid"])
        require(told == (f"io.aetherscale.{stored.type}", stored.seq, stored.command_id), f"not the event: {told}")


def check_list(world: World, *listed: list[dict[str, Any]]) -> None:
    """What the node lists of the first tenant's VMs, images, networks and groups is what its log says."""
    others = {event.stream.partition("-")[2] for event in world.log.events if event.tenant != "default"}
    for found, wanted in zip(listed, told(world.log.events, NODE), strict=True):
        ours = (view for key, view in wanted.items() if key not in others)
        expected = sorted(ours, key=lambda each: (each["name"], each["id"]))
        require([each["id"] for each in found] == [each["id"] for each in expected], f"the node lists {found}")
        for mine, theirs in zip(expected, found, strict=True):
            check_view(mine, theirs)


def require(holds: bool, otherwise: str) -> None:
    """Raise `Violation` where something does not hold."""
    if not holds:
        raise Violation(otherwise)
