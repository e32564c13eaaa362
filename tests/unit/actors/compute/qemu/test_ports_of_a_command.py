"""Which descriptor QEMU has for a port, as its own command line says."""

from __future__ import annotations

from aetherscale.actors.compute.qemu import argv
from aetherscale.actors.compute.qemu.argv import Descriptors, MachineSpec

VM = "2123456789abcdef"


def command(*taps: int) -> list[str]:
    macs = tuple(f"52:54:00:00:00:0{number}" for number in range(len(taps)))
    return argv.command_line("qemu", MachineSpec(VM, 1, 128, "tcg", "qcow2", macs), Descriptors(3, 4, 5, 6, 7, taps))


def test_each_port_has_the_descriptor_that_it_was_given() -> None:
    words = command(20, 21, 35)
    assert [argv.tap_of(words, number) for number in range(4)] == [20, 21, 35, None]


def test_one_with_user_mode_networking_has_none_and_so_has_a_process_that_has_ended() -> None:
    assert argv.tap_of(command(), 0) is None
    assert argv.tap_of([], 0) is None
