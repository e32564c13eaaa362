"""From what a caller asks of a new VM to the command that makes it: names become ids, and its addresses are decided."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Final

from aetherscale.actors.compute.driver import HOST_LIMITS, HostLimits
from aetherscale.actors.compute.model import commands, events, sshkeys, userdata
from aetherscale.actors.compute.model.agreeing import only_what_agrees, only_what_works
from aetherscale.actors.compute.model.commands import CreateVmOptions, PortSpec
from aetherscale.actors.compute.model.effects import PublishedPort
from aetherscale.actors.compute.model.firstboot import FIELD, TAKES, Gift, checked_script, checked_user, digest_of
from aetherscale.actors.compute.model.initsentences import remedy_for
from aetherscale.actors.compute.model.presentation import ADDRESS, HOST_PORT, address_key
from aetherscale.actors.compute.model.publishing import host_port_key, parse_published
from aetherscale.actors.compute.model.switches import SwitchPort, is_switch, parse_switches
from aetherscale.actors.compute.model.userdata import checked_user_data
from aetherscale.actors.compute.ports import INIT_SCRIPTS, InitScripts
from aetherscale.actors.compute.publicly import public_network
from aetherscale.actors.compute.rules import borne_groups, port_of
from aetherscale.actors.images.model import events as images
from aetherscale.actors.images.model.views import USABLE, ImageView
from aetherscale.actors.images.ports import CATALOGUE, Catalogue
from aetherscale.actors.network.model import events as networks
from aetherscale.actors.network.model.views import NetworkView
from aetherscale.actors.network.ports import (
    ADDRESSES,
    HOST_NETWORKS,
    HostNetworks,
    allowed_address,
    allowed_in,
    chosen_address,
    mac_on_switch,
    port_in,
)
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.names import is_id
from aetherscale.kernel.reservations import NO_TENANT
from aetherscale.runtime.component import World

MIB: Final = 1024 * 1024


def creation(options: CreateVmOptions, call: Call, vm_id: str, world: World) -> commands.CreateVm:
    """The command that makes a VM as it was asked for. Raises `Refused`."""
    only_what_works(options)
    only_what_agrees(options)
    if options.node not in (None, world.node):
        raise Refused(
            Reason.NOT_FOUND,
            f"this is node {world.node!r}, not {options.node!r}",
            field="node",
            remedy=Task("node", "list"),
        )
    image = _usable_image(world, call.tenant, options.image)
    assert image.format is not None
    assert image.size_bytes is not None
    assert image.virtual_size_bytes is not None
    name = options.name or f"vm-{vm_id[:8]}"
    world.require_free(events.KIND, call.tenant, name, vm_id)
    disk_mib = _disk_mib(options.disk_gib, -(-image.virtual_size_bytes // MIB))
    limits: HostLimits = world.port(HOST_LIMITS)
    limits.require(options.memory_mib, disk_mib)
    # Before a network is missed, which may be made on the way.
    keys, user, init_sha256 = _keys(options, image), _user(options, image), _script(options, image)
    user_data_sha256 = _user_data(options, image)
    spec = commands.VmSpec(
        name=name,
        image_id=image.id,
        image=image.name,
        image_format=image.format,
        image_size_bytes=image.size_bytes,
        image_sha256=image.sha256,
        ready_channel=image.ready,
        cpus=options.cpus,
        memory_mib=options.memory_mib,
        disk_mib=disk_mib,
        restart=options.restart,
        autostart=options.autostart,
        labels=options.labels,
        ports=_ports(options, call, vm_id, name, world),
        publish=_published(options, call, vm_id, world),
        host_loopback=options.host_loopback,
        groups=borne_groups(world, call.tenant, options.groups),
        switches=_switches(options, vm_id, limits),
        ssh_keys=keys,
        first_boot=image.first_boot,
        init_sha256=init_sha256,
        user=user,
        cloud_init_sha256=user_data_sha256,
    )
    return commands.CreateVm(vm_id, spec)


def keep_script(options: CreateVmOptions, vm_id: str, world: World) -> Awaitable[None] | None:
    """Have the host keep what the log is not to have of a VM, where there is any. Raises `Refused`."""
    if options.init_script is None and options.cloud_init is None:
        return None
    return _keep(options, vm_id, world.port(INIT_SCRIPTS))


async def _keep(options: CreateVmOptions, vm_id: str, scripts: InitScripts) -> None:
    if options.init_script is not None:
        await scripts.keep(vm_id, checked_script(options.init_script))
    if options.cloud_init is not None:
        await scripts.keep_user_data(vm_id, checked_user_data(options.cloud_init))


def _usable_image(world: World, tenant: str, reference: str) -> ImageView:
    """An image that a VM can be made from. Raises `Refused` (not found, conflict)."""
    try:
        image: ImageView = world.view(images.KIND, tenant, reference)
    except Refused:
        raise _missing_image(world, reference) from None
    if image.phase == "deleted":
        raise _missing_image(world, reference)
    if image.phase not in USABLE:
        raise Refused(
            Reason.CONFLICT,
            f"the image {reference!r} is not ready but {image.phase}",
            field="image",
            retryable=image.phase in ("importing", "building"),
            remedy=Task("image", "show", reference),
            made_by=Task("image", "fetch", image.name) if _is_on_the_way(image) else None,
            made_for_all=True,
        )
    return image


def _is_on_the_way(image: ImageView) -> bool:
    """Whether an image of the catalogue is being fetched; one that could not be is until it is gone, which says why."""
    return image.catalogued and (
        image.phase == "importing" or (image.phase == "deleting" and image.failure is not None)
    )


def _missing_image(world: World, reference: str) -> Refused:
    """The refusal for want of an image; one that is in the catalogue is fetched on the way."""
    catalogue: Catalogue = world.port(CATALOGUE)
    fetching = Task("image", "fetch", reference) if catalogue.find(reference) is not None else None
    return Refused(
        Reason.NOT_FOUND,
        f"no such image: {reference!r}",
        field="image",
        remedy=(Task("image", "list"), ", or: ", Task("image", "search"), ", or: ", Task("image", "build", "tiny")),
        made_by=fetching,
        made_for_all=fetching is not None,
    )


def _ports(options: CreateVmOptions, call: Call, vm_id: str, name: str, world: World) -> list[PortSpec]:
    """The ports of a VM, with the addresses that they have for ever. Raises `Refused`."""
    switches = [reference for reference in _named(options) if is_switch(reference)]
    names = [reference for reference in _named(options) if not is_switch(reference)]
    # Before a network is refused for want of it, which has it made on the way.
    allowed = [allowed_address(text) for text in options.allow_addresses]
    given = _chosen(options, world)
    _require_different(names, names)
    found = [usable_network(world, call.tenant, reference) for reference in names]
    if options.public_ip:
        found.append(public_network(world, call.tenant))
        names = [*names, found[-1].name]
    _require_different([network.id for network in found], names)
    require_of_no_network(allowed, found)
    if len(found) + len(switches) > commands.MAX_PORTS:
        raise Refused(Reason.BAD_REQUEST, f"a VM has at most {commands.MAX_PORTS} ports", field="public-ip")

    def is_taken(network_id: str, address: str) -> bool:
        holder = world.named(ADDRESS, NO_TENANT, address_key(network_id, address))
        return holder is not None and holder.id != vm_id

    return [
        port_in(
            network,
            vm_id,
            name,
            index,
            partial(is_taken, network.id),
            allowed,
            given if network.kind == "public" else (),
        )
        for index, network in enumerate(found)
    ]


def _named(options: CreateVmOptions) -> list[str]:
    """The networks and switches that a VM is to have ports in, as they were written."""
    return [options.virtual_network] if isinstance(options.virtual_network, str) else options.virtual_network or []


def _keys(options: CreateVmOptions, image: ImageView) -> list[str]:
    """The public keys that a guest is to have. Raises `Refused` (bad request, conflict)."""
    keys = sshkeys.parse_keys(options.ssh_keys)
    if keys:
        _require_taken(image, "keys", sshkeys.FIELD)
    return keys


def _user(options: CreateVmOptions, image: ImageView) -> str | None:
    """The user whom a guest is to make. Raises `Refused` (bad request, conflict)."""
    if options.user is None:
        return None
    user = checked_user(options.user)
    _require_taken(image, "user", "user")
    return user


def _script(options: CreateVmOptions, image: ImageView) -> str | None:
    """The digest of the init script. Raises `Refused` (bad request, too large, conflict)."""
    if options.init_script is None:
        return None
    digest = digest_of(checked_script(options.init_script))
    _require_taken(image, "init script", FIELD)
    return digest


def _user_data(options: CreateVmOptions, image: ImageView) -> str | None:
    """The digest of the user-data. Raises `Refused` (bad request, too large, conflict)."""
    if options.cloud_init is None:
        return None
    digest = digest_of(checked_user_data(options.cloud_init))
    _require_taken(image, "user-data of cloud-init", userdata.FIELD)
    return digest


def _require_taken(image: ImageView, gift: Gift, field: str) -> None:
    """Refuse what guests of the image do not take: nothing is accepted and ignored. Raises `Refused` (conflict)."""
    if gift not in TAKES[image.first_boot]:
        raise Refused(
            Reason.CONFLICT,
            f"guests of the image {image.name!r} take no {gift} at their first boot",
            field=field,
            remedy=remedy_for(gift, image.first_boot, image.name),
        )


def _switches(options: CreateVmOptions, vm_id: str, limits: HostLimits) -> list[SwitchPort]:
    """The ports of a VM on VDE switches. Raises `Refused` (bad request, conflict)."""
    paths = parse_switches(_named(options))
    for path in paths:
        limits.require_switch(path)
    return [SwitchPort(path, mac_on_switch(vm_id, path)) for path in paths]


def _chosen(options: CreateVmOptions, world: World) -> list[str]:
    """The addresses that the caller has chosen, one of a family. Raises `Refused` (bad request, conflict)."""
    given = [chosen_address(text) for text in options.addresses]
    if len({":" in address for address in given}) != len(given):
        raise Refused(
            Reason.BAD_REQUEST,
            f"{' and '.join(given)} are of one IP family",
            field=ADDRESSES,
            remedy="choose one of IPv4 and one of IPv6 at most; more that the VM may send from are to be allowed",
        )
    for address in given:
        host: HostNetworks = world.port(HOST_NETWORKS)
        if host.is_of_host(address):
            raise Refused(
                Reason.CONFLICT,
                f"{address} is an address of the host, or of a router that it sends to",
                field=ADDRESSES,
                remedy="choose one that nothing in the network has",
            )
    return given


def _require_different(references: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a network that occurs twice; it is called as it was named then."""
    for index, reference in enumerate(references):
        if reference in references[:index]:
            raise Refused(
                Reason.BAD_REQUEST,
                f"the network {names[index]!r} is named twice",
                field="virtual-network",
                remedy="name it once: a VM has one port in a network",
            )


def require_of_no_network(allowed: Sequence[str], networks: Sequence[NetworkView]) -> None:
    """Refuse a prefix that no port of the VM may send from. Between two networks it may have each one in the other."""
    for prefix in allowed:
        if networks and not any(allowed_in(network, [prefix]) for network in networks):
            raise Refused(
                Reason.BAD_REQUEST,
                f"{prefix} has addresses of the network {networks[0].name!r}, each of which is that of one port",
                field="allow-addresses",
                remedy="allow prefixes that have none of the network's own addresses",
            )


def usable_network(world: World, tenant: str, reference: str, field: str = "virtual-network") -> NetworkView:
    """A network that a VM can have a port in. Raises `Refused` (not found, conflict)."""
    making = None if is_id(reference) else Task("network", "create", reference)
    missing = Refused(
        Reason.NOT_FOUND,
        f"no such network: {reference!r}",
        field=field,
        remedy=(making, ", or: ", Task("network", "list")) if making else Task("network", "list"),
        made_by=making,
    )
    try:
        network: NetworkView = world.view(networks.KIND, tenant, reference)
    except Refused:
        raise missing from None
    if network.phase == "deleted":
        raise missing
    if network.phase not in ("ready", "restoring"):
        # One that is being made may yet be rolled back.
        raise Refused(
            Reason.CONFLICT,
            f"the network {reference!r} is not ready but {network.phase}",
            field=field,
            retryable=network.phase == "creating",
            remedy=Task("network", "show", reference),
            made_by=Task("network", "create", network.name) if network.phase == "creating" else None,
        )
    return network


def _published(options: CreateVmOptions, call: Call, vm_id: str, world: World) -> list[PublishedPort]:
    """The ports of the host that are to lead to a VM. Raises `Refused` (bad request, conflict)."""
    published = parse_published(options.publish, host_loopback=options.host_loopback)
    for port in published:
        holder = world.named(HOST_PORT, NO_TENANT, host_port_key(port))
        if holder is not None and holder.id != vm_id:
            raise port_of(holder, call.tenant, f"{port.host_port}/{port.protocol}", "publish")
    return published


def _disk_mib(wanted_gib: int | None, image_mib: int) -> int:
    """The size of a disk, never smaller than its image. Raises `Refused` (bad request)."""
    if wanted_gib is None:
        return max(commands.DEFAULT_DISK_GIB * 1024, image_mib)
    if wanted_gib * 1024 < image_mib:
        what = f"a disk of {wanted_gib} GiB is too small for the image: it needs {image_mib} MiB"
        raise Refused(Reason.BAD_REQUEST, what, field="disk-gib")
    return wanted_gib * 1024
