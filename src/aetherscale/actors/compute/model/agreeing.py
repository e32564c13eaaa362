"""Which options of a new VM go together, and which this version has. Pure."""

from __future__ import annotations

from aetherscale.actors.compute.model.commands import CreateVmOptions
from aetherscale.kernel.errors import Reason, Refused


def only_what_works(options: CreateVmOptions) -> None:
    """Refuse the options of components that this version does not have: never accept and ignore. Raises `Refused`."""
    later = {
        "vpn": options.vpn,
        "init-script": options.init_script,
        "ssh-keys": options.ssh_keys,
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
    has_ports = bool(options.virtual_network or options.public_ip)
    if options.addresses and not options.public_ip:
        raise Refused(
            Reason.BAD_REQUEST,
            "addresses are chosen for the port on the public bridge; a network gives its own",
            field="addresses",
            remedy="ask for a public address too, or leave this out",
        )
    if options.allow_addresses and not has_ports:
        raise Refused(
            Reason.BAD_REQUEST,
            "a VM without a network has no port that may have more addresses",
            field="allow-addresses",
            remedy="name a network, or leave this out",
        )
    if options.groups and not has_ports:
        raise Refused(
            Reason.BAD_REQUEST,
            "a VM without a network has no port that a group could let anything to",
            field="groups",
            remedy="name a network, or leave this out",
        )
    if options.host_loopback and has_ports:
        raise Refused(
            Reason.BAD_REQUEST,
            "a VM in a network does not reach the host's loopback",
            field="host-loopback",
            remedy="leave out one of the two",
        )
    if options.publish and has_ports:
        raise Refused(
            Reason.NOT_IMPLEMENTED,
            "ports of a VM in a network cannot be published in this version",
            field="publish",
            remedy="leave out one of the two: a VM without a network has user-mode networking, which can",
        )
