"""Which accelerator a VM gets, and when KVM is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.compute.qemu import accel, identity, rom
from aetherscale.actors.compute.qemu.accel import Accelerators, Choice
from aetherscale.kernel.fault import Fault
from aetherscale.processes import users

VM = "0123456789abcdef"


class Proofs:
    """Stands in for the proof, which only a host's own KVM can decide: the verdict is what is tested here."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.count = 0

    async def __call__(self, *arguments: Any) -> str:
        self.count += 1
        return self.reason


@pytest.fixture
def qemu(tmp_path: Path) -> str:
    path = tmp_path / "qemu"
    path.write_bytes(b"1")
    return str(path)


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    node = tmp_path / "kvm"
    node.touch(0o666)
    node.chmod(0o666)
    monkeypatch.setattr(accel, "KVM", node)
    return node


def proofs(monkeypatch: pytest.MonkeyPatch, reason: str) -> Proofs:
    stand_in = Proofs(reason)
    monkeypatch.setattr(accel, "failure_of", stand_in)
    return stand_in


@pytest.mark.usefixtures("kvm")
@pytest.mark.parametrize(("reason", "accelerator"), [("", "kvm"), ("it is a thousand times too slow", "tcg")])
async def test_auto_takes_kvm_after_a_proof_which_is_made_once(
    tmp_path: Path, qemu: str, monkeypatch: pytest.MonkeyPatch, reason: str, accelerator: str
) -> None:
    made = proofs(monkeypatch, reason)
    for accelerators in (Accelerators("auto", tmp_path), Accelerators("auto", tmp_path)):
        assert (await accelerators.choose(qemu, VM)).accelerator == accelerator
        assert (await accelerators.choose(qemu, VM)).accelerator == accelerator
    assert made.count == 1


@pytest.mark.usefixtures("kvm")
async def test_another_qemu_or_another_boot_asks_for_another_proof(
    tmp_path: Path, qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = proofs(monkeypatch, "no")
    await Accelerators("auto", tmp_path).choose(qemu, VM)
    Path(qemu).write_bytes(b"another one")
    await Accelerators("auto", tmp_path).choose(qemu, VM)
    assert made.count == 2
    monkeypatch.setattr(identity, "boot_id", lambda: "another boot")
    await Accelerators("auto", tmp_path).choose(qemu, VM)
    assert made.count == 3


@pytest.mark.usefixtures("kvm")
async def test_kvm_that_has_failed_a_guest_is_not_taken_again(
    tmp_path: Path, qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs(monkeypatch, "")
    accelerators = Accelerators("auto", tmp_path)
    assert (await accelerators.choose(qemu, VM)).accelerator == "kvm"
    accelerators.distrust(qemu, "internal-error")
    assert (await accelerators.choose(qemu, VM)).accelerator == "tcg"
    assert (await Accelerators("auto", tmp_path).choose(qemu, VM)).accelerator == "tcg"


@pytest.mark.usefixtures("kvm")
async def test_a_verdict_that_cannot_be_read_is_none(
    tmp_path: Path, qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "accelerator.json").write_bytes(b"{")
    made = proofs(monkeypatch, "")
    assert (await Accelerators("auto", tmp_path).choose(qemu, VM)).accelerator == "kvm"
    assert made.count == 1


async def test_where_there_is_no_kvm_auto_is_tcg_and_kvm_is_a_fault(
    tmp_path: Path, qemu: str, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = proofs(monkeypatch, "")
    kvm.unlink()
    assert await Accelerators("auto", tmp_path).choose(qemu, VM) == Choice("tcg", None)
    with pytest.raises(Fault, match="does not exist") as fault:
        await Accelerators("kvm", tmp_path).choose(qemu, VM)
    assert "--accelerator tcg" in fault.value.remedy
    assert made.count == 0


@pytest.mark.usefixtures("kvm")
async def test_a_setting_is_taken_at_its_word(tmp_path: Path, qemu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = proofs(monkeypatch, "no")
    assert (await Accelerators("kvm", tmp_path).choose(qemu, VM)).accelerator == "kvm"
    assert (await Accelerators("tcg", tmp_path).choose(qemu, VM)).accelerator == "tcg"
    assert made.count == 0


async def test_a_kvm_that_only_root_may_open_is_not_given_to_a_vm(
    tmp_path: Path, qemu: str, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "way", lambda: "switch")
    kvm.chmod(0o600)
    with pytest.raises(Fault, match="not open to the VM's user"):
        await Accelerators("kvm", tmp_path).choose(qemu, VM)


def test_the_proof_is_a_rom_that_begins_where_the_cpu_does() -> None:
    firmware = rom.proof_rom()
    assert len(firmware) == 64 * 1024
    # The reset vector, 16 bytes before the end: a jump of 16 bits back to the beginning.
    assert firmware[0xFFF0] == 0xE9
    target = (0xFFF3 + int.from_bytes(firmware[0xFFF1:0xFFF3], "little")) & 0xFFFF
    assert target == 0
