"""The images that virtual machines boot from."""

from typing import Final

from aetherscale.kernel.identity import Identity

IDENTITY: Final = Identity(
    component="images",
    kind="image",
    plural="images",
    noun="image",
    reference="image",
    about="base images: import, build, list, delete",
    help="manage the images that VMs boot from: import, build, list …",
)
