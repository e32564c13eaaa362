"""Names and aliases of devices: they fit into the kernel's fields, and nothing else is taken for one of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.network.model.devices import (
    Alias,
    advertiser_name,
    batch_group,
    bridge_name,
    group_of,
    is_group,
    parse_alias,
    service_name,
    tap_name,
)
from aetherscale.kernel.names import ID_PATTERN, NAME_PATTERN

IFNAME_BYTES = 15
IFALIAS_BYTES = 255
NETWORK = "0123456789abcdef"

ids = st.from_regex(ID_PATTERN, fullmatch=True)
names = st.from_regex(NAME_PATTERN, fullmatch=True)
aliases = st.builds(Alias, names, st.sampled_from(("network", "port", "resolver")), ids)


@given(ids, st.integers(0, 1000))
def test_a_name_of_a_device_fits_and_says_what_it_is(any_id: str, index: int) -> None:
    for name, prefix in (
        (bridge_name(any_id), "aeb"),
        (tap_name(any_id, index), "aep"),
        (service_name(any_id), "aes"),
        (advertiser_name(any_id), "aer"),
    ):
        assert len(name) == IFNAME_BYTES
        assert name.startswith(prefix)
        assert set(name[3:]) <= set("0123456789abcdef")


def test_names_are_the_same_for_ever() -> None:
    assert (bridge_name(NETWORK), tap_name(NETWORK, 0)) == ("aeb905cdbefcb06", "aepac3627c729d3")


def test_names_of_ports_of_one_vm_differ_and_so_do_those_of_vms() -> None:
    every = [tap_name(f"{vm:016x}", index) for vm in range(100) for index in range(100)]
    assert len(set(every)) == len(every)


@given(aliases)
def test_an_alias_is_read_as_it_was_written_and_fits(alias: Alias) -> None:
    assert parse_alias(str(alias)) == alias
    assert len(str(alias)) <= IFALIAS_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aetherscale",
        "uplink of aetherscale",
        f"aetherscale host1 network {NETWORK}\n",
        f" aetherscale host1 network {NETWORK}",
        f"aetherscale host1 network {NETWORK} ",
        f"aetherscale host1  network {NETWORK}",
        f"aetherscale host1 network {NETWORK}0",
        f"aetherscale host1 network {NETWORK[1:]}",
        "aetherscale host1 network a123456789abcdef",
        f"aetherscale host1 Network {NETWORK}",
        f"aetherscale host1 vm {NETWORK}",
        f"aetherscale Host1 network {NETWORK}",
        f"aetherscale host1- network {NETWORK}",
        f"aetherscale  network {NETWORK}",
        f"aetherscale {'a' * 64} network {NETWORK}",
        f"Aetherscale host1 network {NETWORK}",
        f"aetherscale\thost1\tnetwork\t{NETWORK}",
        f"aetherscale host1 network {NETWORK}\0",
        "aetherscale host1 network ٠123456789abcdef",
    ],
)
def test_what_is_only_like_an_alias_is_none(text: str) -> None:
    assert parse_alias(text) is None


@given(aliases, st.integers(0, 300), st.characters())
def test_an_alias_with_one_character_more_is_another_one_or_none(alias: Alias, place: int, more: str) -> None:
    text = str(alias)
    assert parse_alias(text[:place] + more + text[place:]) != alias


@given(ids, names, st.integers(0, 1 << 20))
def test_a_group_for_one_removal_is_never_that_of_a_vm(any_id: str, node: str, count: int) -> None:
    assert is_group(group_of(any_id))
    assert not is_group(batch_group(node, count))
    assert 0 < batch_group(node, count) < 1 << 31


def test_no_group_is_the_default_one() -> None:
    assert not is_group(0)
    assert len({group_of(f"{vm:016x}") for vm in range(1000)}) == 1000
