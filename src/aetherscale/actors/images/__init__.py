"""The images that virtual machines boot from."""

from typing import Final

from aetherscale.kernel.identity import ID, NAME, NODE, PHASE, Column, Identity

IDENTITY: Final = Identity(
    component="images",
    kind="image",
    plural="images",
    noun="image",
    reference="image",
    about="base images: import, build, list, delete",
    help="manage the images that VMs boot from: import, build, list …",
    columns=(
        NAME,
        PHASE,
        Column("FORMAT", "format"),
        Column("SIZE", "size-bytes", "bytes"),
        Column("DISK", "virtual-size-bytes", "bytes"),
        Column("READY BY", "ready", spare=1),
        NODE,
        ID,
    ),
)
