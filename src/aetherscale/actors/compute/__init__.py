"""Virtual machines."""

from typing import Final

from aetherscale.kernel.identity import Identity

IDENTITY: Final = Identity(
    component="compute",
    kind="vm",
    plural="vms",
    noun="VM",
    reference="vm-id",
    about="virtual machines: create, start, stop, delete, list, console",
    help="manage virtual machines: create, list, start, stop, console …",
)
