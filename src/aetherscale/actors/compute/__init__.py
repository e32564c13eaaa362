"""Virtual machines."""

from typing import Final

from aetherscale.kernel.identity import ID, NAME, NODE, PHASE, SINCE, Column, Identity

IDENTITY: Final = Identity(
    component="compute",
    kind="vm",
    plural="vms",
    noun="VM",
    reference="vm-id",
    about="virtual machines: create, start, stop, delete, list, console",
    help="manage virtual machines: create, list, start, stop, console …",
    columns=(
        NAME,
        PHASE,
        Column("IMAGE", "image", is_name=True),
        Column("CPUS", "cpus", spare=2),
        Column("MEMORY", "memory-mib", "MiB", spare=3),
        Column("DISK", "disk-gib", "GiB", spare=1),
        Column("ADDRESS", "ports", "addresses", spare=5),
        NODE,
        SINCE._replace(spare=4),
        ID,
    ),
)
