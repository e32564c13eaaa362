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
        Column("CPUS", "cpus"),
        Column("MEMORY", "memory-mib", "MiB"),
        Column("DISK", "disk-gib", "GiB", is_spare=True),
        NODE,
        SINCE,
        ID,
    ),
)
