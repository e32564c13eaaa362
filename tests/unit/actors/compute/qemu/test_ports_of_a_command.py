"""The cards of a command line: which descriptor each has, and which slots there are for others."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from aetherscale.actors.compute.model.commands import MAX_PORTS
from aetherscale.actors.compute.model.state import HOT_SLOTS
from aetherscale.actors.compute.qemu import argv
from aetherscale.actors.compute.qemu.argv import Descriptors, MachineSpec

VM = "2123456789abcdef"
TAPS = [f"aep{number:012x}" for number in range(MAX_PORTS)]


def command(*taps: int) -> list[str]:
    cards = tuple((TAPS[number], f"52:54:00:00:00:0{number}") for number in range(len(taps)))
    return argv.command_line("qemu", MachineSpec(VM, 1, 128, "tcg", "qcow2", cards), Descriptors(3, 4, 5, 6, 7, taps))


def devices(words: list[str], driver: str) -> list[dict[str, Any]]:
    made = [json.loads(value) for option, value in pairwise(words) if option == "-device"]
    return [each for each in made if each["driver"] == driver]


def test_each_port_has_the_descriptor_that_it_was_given() -> None:
    words = command(20, 21, 35)
    assert [argv.tap_of(words, tap) for tap in TAPS[:4]] == [20, 21, 35, None]


def test_one_with_user_mode_networking_has_none_and_so_has_a_process_that_has_ended() -> None:
    assert argv.tap_of(command(), TAPS[0]) is None
    assert argv.tap_of([], TAPS[0]) is None


def test_each_card_is_in_a_slot_of_its_own_and_as_many_are_free_as_there_are_to_be() -> None:
    words = command(*range(20, 20 + MAX_PORTS))
    slots = devices(words, "pcie-root-port")
    assert len({each["chassis"] for each in slots}) == len({each["id"] for each in slots}) == MAX_PORTS + HOT_SLOTS
    taken = [each["bus"] for each in devices(words, "virtio-net-pci")]
    free = [each["id"] for each in slots if each["id"] not in taken]
    assert len(set(taken)) == MAX_PORTS
    assert free == [argv.hot_slot(number) for number in range(HOT_SLOTS)]


def test_a_guest_with_user_mode_networking_has_no_slot() -> None:
    assert devices(command(), "pcie-root-port") == []


def test_a_card_on_a_switch_is_after_those_in_networks_and_its_stream_is_inherited_alone() -> None:
    spec = MachineSpec(VM, 1, 128, "tcg", "qcow2", ((TAPS[0], "52:54:00:00:00:00"),), ("02:00:00:00:00:01",))
    given = Descriptors(3, 4, 5, 6, 7, (20,), ((30, 31),))
    words = argv.command_line("qemu", spec, given)
    netdevs = [json.loads(value) for option, value in pairwise(words) if option == "-netdev"]
    assert netdevs[1] == {"type": "dgram", "id": "vde0", "local": {"type": "fd", "str": "30"}}
    assert [(each["netdev"], each["mac"], each["bus"]) for each in devices(words, "virtio-net-pci")] == [
        (TAPS[0], "52:54:00:00:00:00", "slot0"),
        ("vde0", "02:00:00:00:00:01", "slot1"),
    ]
    assert len(devices(words, "pcie-root-port")) == 2 + HOT_SLOTS
    assert set(given.all()) == {3, 4, 5, 6, 7, 20, 30, 31}
    assert not [word for word in words if "31" in word]


def test_a_guest_on_a_switch_alone_has_no_user_mode_networking() -> None:
    spec = MachineSpec(VM, 1, 128, "tcg", "qcow2", switch_cards=("02:00:00:00:00:01",))
    words = argv.command_line("qemu", spec, Descriptors(3, 4, 5, 6, 7, switches=((30, 31),)))
    assert [json.loads(value)["type"] for option, value in pairwise(words) if option == "-netdev"] == ["dgram"]
    assert len(devices(words, "pcie-root-port")) == 1 + HOT_SLOTS
