"""What QEMU is started with: nothing that a user wrote, no file by its name, no privilege."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.compute.qemu.argv import Descriptors, MachineSpec, command_line, mac_address
from aetherscale.actors.compute.qemu.identity import machine_uuid
from aetherscale.kernel.names import ID_PATTERN

SPEC = MachineSpec("0123456789abcdef", 2, 512, "tcg", "qcow2")
DESCRIPTORS = Descriptors(10, 11, 13, 14, 15)
HOSTILE = ["../x", "a,b", "a b", "", "0123456789abcde\n", "-x", "0123456789ABCDEF", "x" * 16, "0123456789abcdef\n"]


def options(command: list[str], name: str) -> list[str]:
    return [command[at + 1] for at, word in enumerate(command) if word == name]


def parsed(command: list[str], name: str) -> list[dict[str, Any]]:
    return [json.loads(value) for value in options(command, name) if value.startswith("{")]


@pytest.mark.parametrize("vm_id", HOSTILE)
def test_nothing_but_a_generated_id_gets_into_a_command_line(vm_id: str) -> None:
    with pytest.raises(AssertionError, match="not a VM's id"):
        replace(SPEC, vm_id=vm_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"accelerator": "tcg,x=y"},
        {"base_format": "vmdk"},
        {"cpus": 0},
        {"cpus": True},
        {"cpus": "1,maxcpus=9"},
        {"memory_mib": -1},
        {"memory_mib": 1.5},
    ],
)
def test_nothing_but_numbers_and_known_words_does(changes: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=r"not a|too small"):
        replace(SPEC, **changes)


@given(
    vm_id=st.from_regex(ID_PATTERN),
    cpus=st.integers(1, 256),
    memory_mib=st.integers(32, 1 << 24),
    base_format=st.sampled_from(["qcow2", "raw"]),
)
def test_every_word_is_one_of_a_known_shape(vm_id: str, cpus: int, memory_mib: int, base_format: Any) -> None:
    command = command_line("qemu", MachineSpec(vm_id, cpus, memory_mib, "tcg", base_format), DESCRIPTORS)
    for word in command:
        assert word.startswith("{") or re.fullmatch(r"[A-Za-z0-9_.,=/:-]+", word), word
        if word.startswith("{"):
            json.loads(word)


def test_no_file_is_opened_by_its_name() -> None:
    command = command_line("qemu", SPEC, DESCRIPTORS)
    files = [node["filename"] for node in parsed(command, "-blockdev") if "filename" in node]
    assert files == ["/dev/fdset/1", "/dev/fdset/2"]
    assert options(command, "-add-fd") == ["fd=10,set=1", "fd=11,set=2"]
    chardevs = set(options(command, "-chardev"))
    assert "null,id=serial" in chardevs
    for chardev in chardevs - {"null,id=serial"}:
        assert re.search(r",fd=1[3-5],server=on,wait=off", chardev)
        assert "path=" not in chardev


@pytest.mark.parametrize("base_format", ["qcow2", "raw"])
def test_the_chain_of_disks_is_spelled_out_and_ends_with_the_base(base_format: Any) -> None:
    nodes = {
        node["node-name"]: node
        for node in parsed(command_line("qemu", replace(SPEC, base_format=base_format), DESCRIPTORS), "-blockdev")
    }
    assert nodes["disk"]["driver"] == "qcow2"
    assert nodes["disk"]["backing"] == "base"
    assert nodes["base"]["driver"] == base_format
    assert nodes["base"]["read-only"]
    assert nodes["base-file"]["read-only"]
    if base_format == "qcow2":
        # Without it the header of the image would decide which other file is opened.
        assert nodes["base"]["backing"] is None


def test_ps_tells_which_vm_it_is() -> None:
    command = command_line("qemu", SPEC, DESCRIPTORS)
    assert options(command, "-name") == ["aether-0123456789abcdef"]
    assert options(command, "-uuid") == [machine_uuid("0123456789abcdef")]


def test_a_guest_keeps_its_uuid_and_its_mac_and_no_two_share_them() -> None:
    one, other = "0123456789abcdef", "0123456789abcdf0"
    assert machine_uuid(one) == "b5dd231c-a4e0-5274-bdaf-25961d2cf983"
    assert machine_uuid(one) != machine_uuid(other)
    assert mac_address(one) != mac_address(other)
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", mac_address(one))


def test_the_disk_for_cloud_init_cannot_be_written_to_and_changes_no_other_device() -> None:
    without = command_line("qemu", SPEC, DESCRIPTORS)
    command = command_line("qemu", SPEC, replace(DESCRIPTORS, seed=16))
    assert command[: len(without)] == without
    assert options(command, "-add-fd")[-1] == "fd=16,set=3"
    file, seed = parsed(command, "-blockdev")[-2:]
    assert (file["filename"], file["read-only"]) == ("/dev/fdset/3", True)
    assert (seed["driver"], seed["file"], seed["read-only"]) == ("raw", file["node-name"], True)
    assert parsed(command, "-device")[-1] == {"driver": "virtio-blk-pci", "id": "seed0", "drive": "seed"}
    assert 16 in replace(DESCRIPTORS, seed=16).all()
    assert 16 not in DESCRIPTORS.all()
