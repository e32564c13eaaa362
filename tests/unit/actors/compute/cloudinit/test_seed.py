"""The disk that cloud-init reads: what is on it, and that nothing which a caller wrote is read as anything else."""

from __future__ import annotations

import email
import io
import subprocess
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given as of
from hypothesis import strategies as st
from msgspec.structs import replace
from pycdlib import PyCdlib

from aetherscale.actors.compute.cloudinit import seed
from tests.unit.actors.compute.model.test_ssh_keys import OTHER, key

VM = "0123456789abcdef"
GIVEN = seed.Given(VM, "web")
HOSTILE = [
    "joe: {a: b}",
    'x"}, "runcmd": ["reboot"], "y": "',
    "#cloud-config",
    "--aetherscale-vendor-data",
    "'; reboot; '",
    "&a *b !!python/object:os.system",
    "\\x41\\n",
    "\U0001f600 \u00fc",
    "{{ v1.region }}",
]


def read(disk: bytes, path: str) -> bytes | None:
    """A file of the disk, as its names of Rock Ridge have it."""
    image = PyCdlib()
    image.open_fp(io.BytesIO(disk))
    content = io.BytesIO()
    try:
        image.get_file_from_iso_fp(content, rr_path=f"/{path}")
    finally:
        image.close()
    return content.getvalue()


def as_cloud_init_reads(text: bytes) -> Any:
    """By the very parser that cloud-init has."""
    return yaml.safe_load(text.decode())


def parts(vendor_data: bytes) -> dict[str, bytes]:
    return {
        part.get_content_type(): part.get_payload(decode=True)  # type: ignore[misc]
        for part in email.message_from_bytes(vendor_data).walk()
        if not part.is_multipart()
    }


def test_the_disk_is_labelled_and_has_each_file_as_it_is() -> None:
    given = replace(GIVEN, script=b"#!/bin/sh\n\xc3\xa4\n", user_data=b"#cloud-config\na: \r\n", user="joe")
    disk = seed.disk(given)
    # The volume's identifier of the primary descriptor (ECMA-119, 8.4.8).
    assert disk[32768 + 40 : 32768 + 72].rstrip() == b"CIDATA"
    assert len(disk) % 512 == 0
    for path, content in seed.files(given).items():
        assert read(disk, path) == content, path
    assert read(disk, "user-data") == given.user_data
    assert read(disk, "aetherscale/aetherscale.init") == given.script
    assert read(disk, "aetherscale/user") == b"joe"


def test_the_instance_is_the_same_for_ever_and_another_for_another_vm() -> None:
    first = as_cloud_init_reads(seed.meta_data(replace(GIVEN, script=b"#!/bin/sh\n", ssh_keys=(key(),))))
    later = as_cloud_init_reads(seed.meta_data(GIVEN))
    other = as_cloud_init_reads(seed.meta_data(replace(GIVEN, vm_id="1" * 16)))
    assert first["instance-id"] == later["instance-id"] == f"aetherscale-{VM}"
    assert other["instance-id"] != first["instance-id"]
    assert later == {"instance-id": f"aetherscale-{VM}", "local-hostname": "web"}


def test_keys_are_roots_or_the_users_and_never_both() -> None:
    keys = (f"{key()} joe@host", OTHER)
    roots = replace(GIVEN, ssh_keys=keys)
    assert as_cloud_init_reads(seed.meta_data(roots))["public-keys"] == list(keys)
    assert as_cloud_init_reads(parts(seed.vendor_data(roots))["text/cloud-config"]) == {"disable_root": False}
    users = replace(roots, user="joe")
    assert "public-keys" not in as_cloud_init_reads(seed.meta_data(users))
    assert "text/cloud-config" not in parts(seed.vendor_data(users))
    assert seed.files(users)["aetherscale/user.keys"] == "".join(f"{each}\n" for each in keys).encode()
    assert "aetherscale/user.keys" not in seed.files(roots)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_caller_wrote_is_one_text_and_nothing_else(text: str) -> None:
    """Names, users and keys are checked before; here no check is relied upon."""
    given = replace(GIVEN, hostname=text, ssh_keys=(text,))
    assert as_cloud_init_reads(seed.meta_data(given)) == {
        "instance-id": f"aetherscale-{VM}",
        "local-hostname": text,
        "public-keys": [text],
    }
    # Ours is the same whatever they are.
    same = replace(given, hostname="web", ssh_keys=(key(),), user_data=b"#cloud-config\n", script=b"#!/bin/sh\n")
    assert seed.vendor_data(given) == seed.vendor_data(same)
    assert text.encode() not in b"".join(parts(seed.vendor_data(replace(given, user=text))).values())


@of(st.text(st.characters(exclude_categories=("C", "Z"))))
def test_any_text_that_can_be_shown_comes_out_as_it_went_in(text: str) -> None:
    assert as_cloud_init_reads(seed.meta_data(replace(GIVEN, hostname=text)))["local-hostname"] == text


def test_what_is_not_given_is_not_on_the_disk() -> None:
    files = seed.files(GIVEN)
    assert files["user-data"] == b"#cloud-config\n{}\n"
    for path in ("network-config", "aetherscale/user", "aetherscale/user.keys", "aetherscale/aetherscale.init"):
        assert path not in files


def test_several_cards_are_set_up_and_one_is_left_to_cloud_init() -> None:
    macs = ("52:54:00:00:00:01", "52:54:00:00:00:02")
    assert seed.network_config(replace(GIVEN, macs=macs[:1])) is None
    made = seed.network_config(replace(GIVEN, macs=macs))
    assert made is not None
    config = as_cloud_init_reads(made)
    assert config["version"] == 1
    assert [(card["name"], card["mac_address"]) for card in config["config"]] == [("eth0", macs[0]), ("eth1", macs[1])]


@pytest.mark.parametrize("name", ["boothook", "begin", "make-user", "ready-report", "no-systemd"])
def test_programs_of_guests_are_read_by_a_shell(name: str) -> None:
    subprocess.run(["sh", "-n", str(seed._GUEST / name)], check=True)
