"""What the driver knows of networks and ports: whatever comes and goes, its rules are those of what is there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.known import NOTHING, Known
from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.kernel.fault import Fault

NETWORKS = {
    f"{number}123456789abcdef": NetworkSpec(f"lab{number}", "isolated", None, f"fd12:3456:789a:{number}::/64", None)
    for number in range(3)
}
IDS = tuple(NETWORKS)
VMS = tuple(f"{number:016x}" for number in range(4))


def port(vm_id: str, index: int, network_id: str) -> PortSpec:
    mac = mac_of(f"{vm_id}-{index}")
    return PortSpec(
        network_id, NETWORKS[network_id].name, f"vm-{int(vm_id, 16)}", tap_name(vm_id, index), mac, None, None
    )


def fresh(networks: dict[str, NetworkSpec], ports: dict[str, list[PortSpec]]) -> Known:
    made = Known()
    made.set_networks(networks)
    made.replace_ports(ports)
    return made


port_lists = st.lists(st.sampled_from(IDS), max_size=2)
steps = st.one_of(
    st.tuples(st.just("network"), st.sampled_from(IDS)),
    st.tuples(st.just("forget"), st.sampled_from(IDS)),
    st.tuples(st.just("set"), st.dictionaries(st.sampled_from(VMS), port_lists, min_size=1)),
    st.tuples(st.just("replace"), st.dictionaries(st.sampled_from(VMS), port_lists)),
)


@given(st.lists(steps, max_size=12))
def test_after_whatever_changes_its_rules_are_those_of_what_is_there(said: list[tuple[str, Any]]) -> None:
    known = Known()
    networks: dict[str, NetworkSpec] = {}
    ports: dict[str, list[PortSpec]] = {}
    for step, what in said:
        if step == "network":
            networks[what] = NETWORKS[what]
            known.set_networks({what: NETWORKS[what]})
        elif step == "forget":
            networks.pop(what, None)
            known.forget_network(what)
        else:
            given_ports = {vm_id: [port(vm_id, *each) for each in enumerate(ids)] for vm_id, ids in what.items()}
            ports = given_ports if step == "replace" else {**ports, **given_ports}
            (known.replace_ports if step == "replace" else known.set_ports)(given_ports)
        wanted = fresh(networks, ports)
        assert known.rules() == wanted.rules()
        assert known.rules() is known.rules()
        assert {network_id: {each.tap for each in known.ports_in(network_id)} for network_id in IDS} == {
            network_id: {each.tap for of_vm in ports.values() for each in of_vm if each.network_id == network_id}
            for network_id in IDS
        }
        for vm_id in VMS:
            assert list(known.ports_of(vm_id)) == ports.get(vm_id, [])
            assert all(known.port_at(each.tap) == (vm_id, each) for each in known.ports_of(vm_id))


def test_the_rules_are_the_same_object_where_nothing_changes() -> None:
    known = fresh(NETWORKS, {VMS[0]: [port(VMS[0], 0, IDS[0])]})
    before = known.rules()
    known.set_networks(dict(NETWORKS))
    known.set_ports({VMS[0]: (port(VMS[0], 0, IDS[0]),), VMS[1]: ()})
    known.replace_ports({VMS[0]: [port(VMS[0], 0, IDS[0])]})
    assert known.rules() is before


def test_a_stamp_changes_with_the_ports_in_the_network_alone() -> None:
    known = fresh(NETWORKS, {})
    known.set_ports({VMS[0]: [port(VMS[0], 0, IDS[0])]})
    stamps = [known.stamp(each) for each in IDS]
    known.set_ports({VMS[0]: [port(VMS[0], 0, IDS[0])]})
    assert [known.stamp(each) for each in IDS] == stamps
    known.set_ports({VMS[0]: [port(VMS[0], 0, IDS[1])]})
    assert [known.stamp(each) != stamp for each, stamp in zip(IDS, stamps, strict=True)] == [True, True, False]


def test_beside_a_network_are_those_that_its_vms_are_in_too() -> None:
    first, second, third = IDS
    known = fresh(NETWORKS, {VMS[0]: [port(VMS[0], 0, first), port(VMS[0], 1, second), port(VMS[0], 2, first)]})
    known.set_ports({VMS[1]: [port(VMS[1], 0, third)]})
    assert [known.beside(each) for each in IDS] == [[NETWORKS[second]], [NETWORKS[first]], []]
    known.set_ports({VMS[1]: [port(VMS[1], 0, third), port(VMS[1], 1, first)]})
    assert known.beside(first) == [NETWORKS[second], NETWORKS[third]]
    known.set_ports({VMS[0]: ()})
    assert [known.beside(each) for each in IDS] == [[NETWORKS[third]], [], [NETWORKS[first]]]
    known.forget_network(third)
    assert known.beside(first) == []


def test_nothing_is_known_at_first() -> None:
    known = Known()
    assert known.rules() == NOTHING
    with pytest.raises(Fault, match="is not known to this node"):
        known.spec(IDS[0])
    with pytest.raises(KeyError):
        known.port_at("aep000000000000")


def test_networks_that_contradict_each_other_are_a_fault() -> None:
    spec = NetworkSpec("lan", "bridged", None, None, "br0")
    made = fresh({IDS[0]: spec, IDS[1]: spec}, {})
    with pytest.raises(Fault, match="two networks have the bridge br0"):
        made.rules()
    made.forget_network(IDS[1])
    assert len(made.rules().networks) == 1
