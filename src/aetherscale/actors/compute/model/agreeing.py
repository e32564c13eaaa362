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
    alone = not (options.virtual_network or options.public_ip)
    discords = (
        (
            options.addresses and not options.public_ip,
            "addresses",
            "addresses are chosen for the port on the public bridge; a network gives its own",
            "ask for a public address too, or leave this out",
        ),
        (
            alone and options.allow_addresses,
            "allow-addresses",
            "a VM without a network has no port that may have more addresses",
            "name a network, or leave this out",
        ),
        (
            alone and options.groups,
            "groups",
            "a VM without a network has no port that a group could let anything to",
            "name a network, or leave this out",
        ),
        (
            options.host_loopback and not alone,
            "host-loopback",
            "a VM in a network does not reach the host's loopback",
            "leave out one of the two",
        ),
    )
    for is_asked, field, told, remedy in discords:
        if is_asked:
            raise Refused(Reason.BAD_REQUEST, told, field=field, remedy=remedy)
    if options.publish and not alone:
        raise Refused(
            Reason.NOT_IMPLEMENTED,
            "ports of a VM in a network cannot be published in this version",
            field="publish",
            remedy="leave out one of the two: a VM without a network has user-mode networking, which can",
        )
