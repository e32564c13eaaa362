"""The security groups that virtual machines bear."""

from typing import Final

from aetherscale.kernel.identity import ID, NAME, NODE, PHASE, SINCE, Column, Identity

IDENTITY: Final = Identity(
    component="firewall",
    kind="group",
    plural="groups",
    noun="group",
    reference="group",
    about="security groups: create, set, list, delete",
    help="say what reaches VMs: groups of rules …",
    columns=(NAME, PHASE, Column("RULES", "rules", "count"), NODE, SINCE, ID),
)
