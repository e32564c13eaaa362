"""How large a VM can be here: memory, CPUs and files, each up to its bound and not beyond."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from aetherscale.actors.compute.qemu import accel, ceilings
from aetherscale.actors.compute.qemu.ceilings import Ceilings, file_limit_bytes
from aetherscale.actors.compute.qemu.supervision import SystemdScopes
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault
from aetherscale.processes import launch
from aetherscale.runtime import memory

MIB = 1024 * 1024
CLUSTER_BYTES = 64 * 1024
UNLIMITED_V1 = 9223372036854771712
JAIL = launch.Jail(None, drops_bounds=False)


# --- memory ----------------------------------------------------------------------------------------------------------


class Kernel:
    """What the kernel says of memory and of control groups, in files of its form."""

    def __init__(self, place: Path) -> None:
        self.proc, self.groups = place / "proc", place / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text("MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable:  4194304 kB\n")
        self.mounts("")
        self.member("")

    def mounts(self, text: str) -> None:
        (self.proc / "self/mountinfo").write_text(text)

    def member(self, text: str) -> None:
        (self.proc / "self/cgroup").write_text(text)

    def group(self, path: str, **files: str) -> None:
        (self.groups / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.groups / path / name.replace("__", ".")).write_text(f"{text}\n")

    def room(self) -> memory.Room:
        return memory.room(memory.groups_of(proc=self.proc), self.proc)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def unified(kernel: Kernel, path: str = "/a/b", root: str = "/") -> None:
    kernel.mounts(
        f"22 1 0:1 / /proc rw - proc proc rw\n30 1 0:28 {root} {kernel.groups} rw - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    kernel.member(f"0::{path}\n")


def test_without_control_groups_it_is_what_the_host_has(kernel: Kernel) -> None:
    assert kernel.room() == memory.Room(8192, 4096, "on this host")


def test_a_group_leaves_what_it_may_have_less_what_it_has(kernel: Kernel) -> None:
    unified(kernel)
    kernel.group("a/b", memory__max=str(300 * MIB), memory__current=str(100 * MIB))
    assert kernel.room()[:2] == (300, 200)
    assert kernel.room().where == f"in the control group {kernel.groups}/a/b, which may have 300 MiB"


def test_files_that_the_kernel_keeps_are_no_use_of_memory(kernel: Kernel) -> None:
    unified(kernel)
    stat = f"anon 1\nfile {90 * MIB}\ninactive_file {40 * MIB}\nactive_file {20 * MIB}\nshmem {30 * MIB}"
    kernel.group("a/b", memory__max=str(300 * MIB), memory__current=str(100 * MIB), memory__stat=stat)
    assert kernel.room().available_mib == 260


def test_the_least_of_all_groups_above_counts(kernel: Kernel) -> None:
    unified(kernel)
    kernel.group("a/b", memory__max="max", memory__current=str(MIB))
    kernel.group("a", memory__max=str(500 * MIB), memory__current=str(400 * MIB))
    kernel.group("", memory__max=str(450 * MIB), memory__current=str(0))
    assert kernel.room()[:2] == (450, 100)
    assert "/a, which may have 500 MiB" in kernel.room().where


def test_where_a_group_is_held_back_is_a_limit_too(kernel: Kernel) -> None:
    unified(kernel)
    kernel.group("a/b", memory__max="max", memory__high=str(200 * MIB), memory__current=str(0))
    assert kernel.room().available_mib == 200


def test_more_than_the_host_has_is_no_limit(kernel: Kernel) -> None:
    unified(kernel)
    kernel.group("a/b", memory__max=str(1 << 50), memory__current=str(0))
    assert kernel.room() == memory.Room(8192, 4096, "on this host")


def test_a_group_that_has_gone_beyond_its_limit_leaves_nothing(kernel: Kernel) -> None:
    unified(kernel)
    kernel.group("a/b", memory__max=str(100 * MIB), memory__current=str(120 * MIB))
    assert kernel.room().available_mib == 0


@pytest.mark.parametrize(("path", "root"), [("/docker/x/inner", "/docker/x"), ("/", "/"), ("/../..", "/")])
def test_a_container_sees_its_own_group_at_the_top(kernel: Kernel, path: str, root: str) -> None:
    unified(kernel, path, root)
    kernel.group("", memory__max=str(100 * MIB), memory__current=str(0))
    assert kernel.room().available_mib == 100


def test_version_1_has_files_of_other_names(kernel: Kernel) -> None:
    kernel.mounts(
        f"30 1 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        f"31 1 0:29 / {kernel.groups} rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
    )
    kernel.member("5:cpu:/\n4:memory:/box/in\n0::/elsewhere\n")
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {30 * MIB}\ntotal_active_file {20 * MIB}"
    kernel.group("box/in", memory__limit_in_bytes=str(UNLIMITED_V1), memory__usage_in_bytes=str(0))
    kernel.group("box", memory__limit_in_bytes=str(300 * MIB), memory__usage_in_bytes=str(100 * MIB), memory__stat=stat)
    assert kernel.room()[:2] == (300, 250)


def test_scopes_are_not_in_the_groups_of_the_node(tmp_path: Path) -> None:
    scopes = SystemdScopes("systemd-run", of_user=False, cgroups=tmp_path)
    scopes.count_in("/aetherscale.slice/aetherscale-probe-1.scope")
    assert list(scopes.memory_groups()) == [tmp_path / "aetherscale.slice", tmp_path]


def test_memory_is_enough_up_to_the_last_mebibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room", lambda groups: memory.Room(8192, 640, "in the control group x"))
    ceilings.require_memory(512, ())
    with pytest.raises(Fault, match="640 MiB are available in the control group x") as fault:
        ceilings.require_memory(513, ())
    assert fault.value.remedy == "stop another VM, or create this one with less memory: at most 512 MiB"
    assert not fault.value.retryable


# --- before a VM is made ---------------------------------------------------------------------------------------------


def refusal(memory_mib: int, disk_mib: int = 1024) -> Refused:
    """What a decision about a VM of this size is told."""
    with pytest.raises(Refused) as refused:
        ceilings.HostCeilings(lambda: ()).require(memory_mib, disk_mib)
    return refused.value


def test_what_no_vm_of_this_host_can_have_is_a_bad_request_and_what_is_taken_now_may_be_free_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "room", lambda groups: memory.Room(8192, 640, "on this host"))
    ceilings.HostCeilings(lambda: ()).require(512, 1024)
    later = refusal(513)
    assert (later.reason, later.field, later.retryable) == (Reason.UNAVAILABLE, "memory-mib", True)
    assert later.message.startswith("not enough memory: the VM needs 513 MiB and QEMU 128 MiB beside it, 640 MiB")
    assert later.remedy == ("stop another VM, or create this one with less memory: at most 512 MiB",)
    assert refusal(8192 - 128).reason is Reason.UNAVAILABLE
    never = refusal(8192 - 127)
    assert (never.reason, never.field, never.retryable) == (Reason.BAD_REQUEST, "memory-mib", False)
    assert never.message == (
        "got 8065, expected at most 8064 MiB of memory for a guest: VMs of this host have 8192 MiB, of which QEMU "
        "takes 128 MiB"
    )


def test_a_disk_that_could_not_be_filled_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room", lambda groups: memory.Room(8192, 640, "on this host"))
    monkeypatch.setattr(ceilings, "may_write", lambda size_bytes: size_bytes <= file_limit_bytes(2048))
    ceilings.HostCeilings(lambda: ()).require(64, 2048)
    refused = refusal(64, 2049)
    assert (refused.reason, refused.field, refused.retryable) == (Reason.BAD_REQUEST, "disk-gib", False)
    assert "the VM's disk of 2049 MiB can grow to a file of" in refused.message


# --- address space and files: real limits, each in a process of its own ----------------------------------------------


def limited(limit: str, most_bytes: int, call: str) -> subprocess.CompletedProcess[str]:
    """Call a function of `ceilings` where this process may have so much, with no right to have more."""
    code = f"""
import resource
from aetherscale.actors.compute.qemu import ceilings
from aetherscale.kernel.fault import Fault
resource.setrlimit(resource.{limit}, ({most_bytes}, {most_bytes}))
try:
    print(ceilings.{call})
except Fault as fault:
    print(fault.reason, "|", fault.remedy, "|", fault.retryable)
"""
    without = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "--"] if may_drop() else []
    return subprocess.run([*without, sys.executable, "-c", code], capture_output=True, text=True, check=True)


def may_drop() -> bool:
    return subprocess.run(["setpriv", "--bounding-set=-sys_resource", "true"], capture_output=True).returncode == 0


def test_address_space_is_a_limit_of_memory() -> None:
    most_mib = 1024 + ceilings.ADDRESS_SPACE_MIB
    assert limited("RLIMIT_AS", most_mib * MIB, "require_memory(1024, ())").stdout == "None\n"
    said = limited("RLIMIT_AS", most_mib * MIB, "require_memory(1025, ())").stdout
    assert f"{most_mib} MiB of address space are allowed to this node's programs" in said
    assert "ulimit -v" in said
    assert "less memory: at most 1024 MiB" in said


def test_a_disk_that_could_not_be_filled_is_refused_with_the_size_that_could() -> None:
    most = file_limit_bytes(3 * 1024)
    assert limited("RLIMIT_FSIZE", most, "require_file_size(3 * 1024)").stdout == "None\n"
    said = limited("RLIMIT_FSIZE", most - 1, "require_file_size(3 * 1024)").stdout
    assert "can grow to a file of 3139 MiB, and this node's programs may write 3138 MiB" in said
    assert "with a disk of 2 GiB" in said
    assert said.endswith("| False\n")
    assert "with a disk of" not in limited("RLIMIT_FSIZE", MIB, "require_file_size(1024)").stdout


def test_who_may_raise_the_limit_of_files_is_not_refused_and_has_the_same_limit_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [(MIB, 2 * MIB)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))
    assert ceilings.may_write(5 * MIB)
    assert limits[-1] == (MIB, 2 * MIB)


# --- the tables of an overlay ----------------------------------------------------------------------------------------


def qcow2_of(size_bytes: int) -> int:
    """The size of a qcow2 file of version 3 that is full: docs/interop/qcow2.txt of QEMU."""
    clusters = -(-size_bytes // CLUSTER_BYTES)
    second = -(-clusters * 8 // CLUSTER_BYTES)
    first = -(-second * 8 // CLUSTER_BYTES)
    counted = clusters + second + first + 1
    counts = -(-counted * 2 // CLUSTER_BYTES)
    # The counts count themselves, and the table that finds them.
    counts = -(-(counted + 2 * counts) * 2 // CLUSTER_BYTES)
    table = -(-counts * 8 // CLUSTER_BYTES)
    return (counted + counts + table) * CLUSTER_BYTES


@pytest.mark.parametrize("disk_mib", [1, 25, 1023, 1024, 10 * 1024, 64 * 1024, 1 << 20, (1 << 20) + 1, 64 << 20])
def test_the_limit_of_files_has_room_for_a_full_disk_and_its_tables(disk_mib: int) -> None:
    assert qcow2_of(disk_mib * MIB) <= file_limit_bytes(disk_mib)
    assert file_limit_bytes(disk_mib) <= disk_mib * MIB * 1.001 + 64 * MIB, "and little more"


# --- CPUs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A QEMU that takes 255; which numbers it was asked about."""
    numbers: list[int] = []

    async def refusal(accelerator: str, qemu: str, jail: launch.Jail, cpus: int) -> str:
        numbers.append(cpus)
        return "X2APIC"

    monkeypatch.setattr(accel, "refusal_of_cpus", refusal)
    return numbers


async def test_as_many_cpus_as_every_qemu_takes_are_not_asked_about(asked: list[int]) -> None:
    await Ceilings().require_cpus(255, "tcg", sys.executable, JAIL)
    assert asked == []


async def test_more_are_refused_with_the_number_that_works_and_asked_about_once(asked: list[int]) -> None:
    asking = Ceilings()
    for _ in range(2):
        with pytest.raises(Fault, match="at most 255 CPUs on this host under TCG, not 256: X2APIC") as fault:
            await asking.require_cpus(256, "tcg", sys.executable, JAIL)
        assert fault.value.remedy == "create it with at most 255 CPUs"
        assert not fault.value.retryable
    assert asked == [256]


async def test_kvm_may_have_fewer(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_most_of_kvm", lambda: 8)
    await Ceilings().require_cpus(8, "kvm", sys.executable, JAIL)
    with pytest.raises(Fault, match="at most 8 CPUs on this host under KVM, not 9"):
        await Ceilings().require_cpus(9, "kvm", sys.executable, JAIL)
    await Ceilings().require_cpus(9, "tcg", sys.executable, JAIL)


def test_a_kvm_that_cannot_be_asked_sets_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "KVM", tmp_path / "kvm")
    assert ceilings._most_of_kvm() >= 256
