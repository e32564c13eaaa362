"""What QEMU is started with: nothing that a user wrote, no file by its name, no privilege."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.compute.qemu import launch, users
from aetherscale.actors.compute.qemu.argv import Descriptors, MachineSpec, command_line, mac_address
from aetherscale.actors.compute.qemu.identity import machine_uuid
from aetherscale.kernel.fault import Fault
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


def test_a_jail_takes_everything_away_before_qemu_begins() -> None:
    wrapped = launch.Jail(uid=1_900_000_000, file_limit_bytes=4096).wrap(["/usr/bin/qemu", "-x"])
    before, command = wrapped[: wrapped.index("/usr/bin/qemu")], wrapped[wrapped.index("/usr/bin/qemu") :]
    assert command == ["/usr/bin/qemu", "-x"]
    for word in (
        *("--core=0", "--fsize=4096", "--reuid=1900000000", "--regid=1900000000", "--clear-groups"),
        *("--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"),
    ):
        assert word in before


def test_a_jail_for_kvm_has_one_group_and_no_other() -> None:
    wrapped = launch.Jail(uid=1_900_000_000, group=108).wrap(["qemu"])
    assert "--groups=108" in wrapped
    assert "--clear-groups" not in wrapped


def test_a_node_that_is_not_root_still_gives_everything_else_away() -> None:
    wrapped = launch.Jail(uid=None, drops_bounds=False).wrap(["qemu"])
    assert not any("uid" in word for word in wrapped)
    assert {"--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"} <= set(wrapped)
    assert "--bounding-set=-all" not in wrapped, "only CAP_SETPCAP lets it go, and setpriv would fail"


def test_a_root_that_keeps_its_bounding_set_gives_all_up_right_before_qemu() -> None:
    wrapped = launch.Jail(uid=None, drops_bounds=False, gives_up=True).wrap(["/usr/bin/qemu", "-x"])
    assert [Path(word).name for word in wrapped[-3:]] == ["uncapable.py", "qemu", "-x"]
    assert wrapped.index("--no-new-privs") < len(wrapped) - 3


def test_a_root_that_stays_root_still_loses_its_bounding_set() -> None:
    assert "--bounding-set=-all" in launch.Jail(uid=None).wrap(["qemu"])


def test_a_jail_whose_uid_is_mapped_asks_for_it_between_the_limits_and_the_drop() -> None:
    wrapped = launch.Jail(uid=1_900_000_000, mapper=Path("/run/m.sock")).wrap(["qemu"])
    names = [Path(word).name for word in wrapped]
    order = [names.index(word) for word in ("prlimit", "unshare", "mapped.py", "setpriv", "qemu")]
    assert order == sorted(order)
    assert wrapped[order[2] + 1 : order[3]] == ["/run/m.sock", "1900000000"]


@given(st.from_regex(ID_PATTERN), st.from_regex(ID_PATTERN))
def test_every_vm_has_a_uid_of_its_own_that_nobody_else_hands_out(one: str, other: str) -> None:
    uids = [users.derived_uid(vm_id) for vm_id in (one, other)]
    assert all(0x7000_0000 <= uid < 0x7FFE_0000 for uid in uids)
    assert (uids[0] == uids[1]) == (one == other)


def test_a_program_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Fault, match="qemu-system-x86_64 is not installed") as fault:
        launch.program("qemu-system-x86_64")
    assert fault.value.remedy == "apt-get install --no-install-recommends qemu-system-x86"
    assert not fault.value.retryable
