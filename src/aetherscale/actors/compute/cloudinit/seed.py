"""The disk that cloud-init finds what a guest is given on: a file system labelled CIDATA (NoCloud). Texts are pure.

    meta-data       the instance id, which is the VM's for ever; the host name; root's keys, where no user is named
    user-data       the caller's own, as it is; without any an empty cloud-config
    vendor-data     ours: root may log in with keys, and `begin` is run at each boot
    network-config  where there are several cards: cloud-init by itself sets up one
    aetherscale/    what `begin` takes: the user and the keys, the init script, programs

What a caller has written gets into texts by an encoder of JSON, which is YAML, or is a file of its own: it cannot be
read as anything else. In cloud-init's documentation: "NoCloud", "Vendor data", "User data formats".
"""

from __future__ import annotations

import io
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale import guestscripts
from aetherscale.actors.compute.model.sshkeys import authorized_keys

LABEL: Final = "CIDATA"
OURS: Final = "aetherscale"
"""The directory of the disk that only `begin` reads."""
INIT_SCRIPT: Final = "aetherscale.init"
NO_USER_DATA: Final = b"#cloud-config\n{}\n"
_GUEST: Final = Path(__file__).with_name("guest")
_BOOTHOOK: Final = "boothook"
_BOUNDARY: Final = "aetherscale-vendor-data"


class Given(Struct, frozen=True):
    """What a guest is given."""

    vm_id: str
    hostname: str
    ssh_keys: tuple[str, ...] = ()
    user: str | None = None
    """Who has the keys; None for root."""
    script: bytes | None = None
    user_data: bytes | None = None
    macs: tuple[str, ...] = ()
    """Of the cards of the guest in networks, in order."""


def meta_data(given: Given) -> bytes:
    """What cloud-init knows of the instance: with another id it would begin anew."""
    known: dict[str, Any] = {"instance-id": f"aetherscale-{given.vm_id}", "local-hostname": given.hostname}
    if given.ssh_keys and given.user is None:
        known["public-keys"] = list(given.ssh_keys)
    return _yaml(known)


def vendor_data(given: Given) -> bytes:
    """Our part. What the caller's own user-data says of the same comes before it."""
    message = MIMEMultipart(boundary=_BOUNDARY)
    if given.ssh_keys and given.user is None:
        message.attach(_part("cloud-config", b"#cloud-config\n" + _yaml({"disable_root": False})))
    message.attach(_part("cloud-boothook", (_GUEST / _BOOTHOOK).read_bytes()))
    return message.as_bytes()


def network_config(given: Given) -> bytes | None:
    """How the cards are set up, in version 1, which every cloud-init reads; None where it finds the one by itself."""
    if len(given.macs) < 2:
        return None
    subnets = [{"type": "dhcp4"}, {"type": "ipv6_slaac"}]
    cards = [
        {"type": "physical", "name": f"eth{number}", "mac_address": mac, "subnets": subnets}
        for number, mac in enumerate(given.macs)
    ]
    return _yaml({"version": 1, "config": cards})


def files(given: Given) -> dict[str, bytes]:
    """What is on the disk, by the paths of the files."""
    programs = {path.name: path.read_bytes() for path in _GUEST.iterdir() if path.name != _BOOTHOOK}
    programs |= {name: guestscripts.script(name) for name in guestscripts.SCRIPTS}
    found: dict[str, bytes | None] = {
        "meta-data": meta_data(given),
        "user-data": given.user_data or NO_USER_DATA,
        "vendor-data": vendor_data(given),
        "network-config": network_config(given),
        **{f"{OURS}/{name}": text for name, text in programs.items()},
        f"{OURS}/user": None if given.user is None else given.user.encode(),
        f"{OURS}/user.keys": authorized_keys(given.ssh_keys) if given.user is not None and given.ssh_keys else None,
        f"{OURS}/{INIT_SCRIPT}": given.script,
    }
    return {path: content for path, content in found.items() if content is not None}


def disk(given: Given) -> bytes:
    """The disk itself: ISO 9660 with the names of Rock Ridge, which every Linux with cloud-init reads."""
    # Here, since few VMs need it.
    from pycdlib import PyCdlib

    written = io.BytesIO()
    image = PyCdlib()
    image.new(interchange_level=3, rock_ridge="1.09", vol_ident=LABEL)
    try:
        image.add_directory("/OURS", rr_name=OURS, file_mode=0o40500)
        for number, (path, content) in enumerate(sorted(files(given).items())):
            directory, _, name = path.rpartition("/")
            place = f"{'/OURS' if directory else ''}/F{number}.;1"
            image.add_fp(io.BytesIO(content), len(content), place, rr_name=name, file_mode=0o100400)
        image.write_fp(written)
    finally:
        image.close()
    return written.getvalue()


def _yaml(value: Any) -> bytes:
    """JSON is YAML: keys and texts in quotes, each in its place, whatever is in them."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _part(kind: str, text: bytes) -> MIMEText:
    return MIMEText(text.decode(), kind, "utf-8")
