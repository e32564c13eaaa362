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
        Column("ADDRESS", "ipv4", otherwise=("ipv6", "bridge"), shown="brief"),
        Column("IPV4", "ipv4", shown="wide"),
        Column("IPV6", "ipv6", shown="wide"),
        Column("BRIDGE", "device", shown="wide"),
        NODE,
        SINCE._replace(spare=1),
        ID,
    ),
)
