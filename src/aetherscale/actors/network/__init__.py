"""The networks that virtual machines are in."""

from typing import Final

from aetherscale.kernel.identity import ID, NAME, NODE, PHASE, SINCE, Column, Identity

IDENTITY: Final = Identity(
    component="network",
    kind="network",
    plural="networks",
    noun="network",
    reference="network",
    about="virtual networks: create, list, delete",
    help="manage the networks that VMs are in: create, list, delete …",
    columns=(
        NAME,
        PHASE,
        Column("KIND", "kind"),
        Column("IPV4", "ipv4"),
        Column("IPV6", "ipv6", is_spare=True),
        NODE,
        SINCE,
        ID,
    ),
)
