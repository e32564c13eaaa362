"""Which options of a new VM go together, and which this version has. Pure."""

from __future__ import annotations

from aetherscale.actors.compute.model.commands import CreateVmOptions
from aetherscale.actors.compute.model.switches import is_switch
from aetherscale.kernel.errors import Reason, Refused


def only_what_works(options: CreateVmOptions) -> None:
    """Refuse the options of components that this version does not have: never accept and ignore. Raises `Refused`."""
    later = {
        "vpn": options.vpn,
    }
    for field, value in later.items():
        if value:
            raise Refused(
                Reason.NOT_IMPLEMENTED,
                f"the option {field!r} does not work in this version",
                field=field,
                remedy="leave it out: a VM has user-mode networking",
            )


def only_what_agrees(options: CreateVmOptions) -> None:
    """Refuse what is of user-mode networking where the VM is to be in a network, and what is of ports where not.

    Raises `Refused`.
    """
    names = options.virtual_network or []
    named = [names] if isinstance(names, str) else names
    in_network = options.public_ip or not all(map(is_switch, named))
    alone = not (named or options.public_ip)
    where = "in a network" if in_network else "on a VDE switch"
    none = "a VM without a network" if alone else "a VM whose only ports are on VDE switches"
    discords = (
        (
            options.addresses and not options.public_ip,
            "addresses",
            "addresses are chosen for the port on the public bridge; a network gives its own",
            "ask for a public address too, or leave this out",
        ),
        (
            options.allow_addresses and not in_network,
            "allow-addresses",
            f"{none} has no port that may have more addresses",
            "name a network, or leave this out",
        ),
        (
            options.groups and not in_network,
            "groups",
            f"{none} has no port that a group could let anything to",
            "name a network, or leave this out",
        ),
        (
            options.wait_for == "init" and options.init_script is None,
            "wait-for",
            "there is no init script that could be waited for",
            "give one, or wait until the guest is ready",
        ),
        (
            options.host_loopback and not alone,
            "host-loopback",
            f"a VM {where} does not reach the host's loopback",
            "leave out one of the two",
        ),
    )
    for is_asked, field, told, remedy in discords:
        if is_asked:
            raise Refused(Reason.BAD_REQUEST, told, field=field, remedy=remedy)
    if options.publish and not alone:
        raise Refused(
            Reason.NOT_IMPLEMENTED,
            f"ports of a VM {where} cannot be published in this version",
            field="publish",
            remedy="leave out one of the two: a VM without a network has user-mode networking, which can",
        )
