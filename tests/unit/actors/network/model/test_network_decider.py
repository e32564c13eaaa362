"""What follows when something is said to a network, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given as assuming
from hypothesis import strategies as st

from aetherscale.actors.network.model import commands, effects, events
from aetherscale.actors.network.model.decide import NETWORKS
from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.actors.network.model.presentation import (
    NETWORK_KIND,
    announce,
    blocks,
    holds,
    is_deleted,
    is_made,
    view,
)
from aetherscale.actors.network.model.state import Network
from aetherscale.bus.refusals import hint
from aetherscale.kernel.attempts import ATTEMPT_LIMIT
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.reservations import Name, NodeKey, User
from aetherscale.kernel.times import SECOND_US
from tests.support.spec import NOON_US, Given

ID = "0123456789abcdef"
SPEC = NetworkSpec("lab", "nat", "10.64.3.0/24", "fd12:3456:789a:bcde::/64", None)
REQUESTED = events.NetworkRequested(ID, SPEC)
UP, DOWN = events.NetworkUp("boot1"), events.NetworkDown("rules flushed", "nft, pid 812")
DELETING, DELETED = events.NetworkDeleteRequested(), events.NetworkDeleted()
LOST = commands.NetworkLost(ID, "rules flushed", "nft, pid 812")


def given(*past: events.NetworkEvent) -> Given[Network, Any, Any, Any]:
    return Given(NETWORKS, past)


def state_of(network: Given[Network, Any, Any, Any]) -> Network:
    assert network.state is not None
    return network.state


def failed(*, retryable: bool = True) -> EffectFailed:
    return EffectFailed("", "no bridge", "load it", retryable)


def test_a_request_makes_pending_that_it_is_ensured() -> None:
    network = given().when(commands.CreateNetwork(ID, SPEC)).then(REQUESTED)
    assert network.pending == effects.EnsureNetwork("ensure-1", ID, SPEC)
    assert not is_made(state_of(network))


def test_one_that_is_ensured_is_made() -> None:
    network = given(REQUESTED).when(effects.NetworkEnsured("ensure-1", "boot1")).then(UP)
    assert network.pending is None
    assert is_made(state_of(network))
    assert state_of(network).boot_id == "boot1"


def test_what_is_lost_is_made_again_and_told_once() -> None:
    network = given(REQUESTED, UP).when(LOST).then(DOWN)
    assert isinstance(network.pending, effects.EnsureNetwork)
    network.when(LOST).nothing_happens()
    network.when(commands.NetworkLost(ID, "the bridge is gone")).then(events.NetworkDown("the bridge is gone", ""))
    again = network.when(effects.NetworkEnsured("ensure-1", "boot2")).then(events.NetworkUp("boot2"))
    assert (state_of(again).phase, state_of(again).down) == ("ready", "")


@pytest.mark.parametrize("past", [(REQUESTED,), (REQUESTED, UP, DELETING), (REQUESTED, UP, DELETING, DELETED)])
def test_what_is_being_made_or_taken_away_is_not_missed(past: Sequence[events.NetworkEvent]) -> None:
    given(*past).when(LOST).nothing_happens()


def test_a_restoration_is_never_given_up() -> None:
    network = given(REQUESTED, UP, DOWN)
    waits = []
    for _ in range(10):
        network = network.when(failed(retryable=False)).then_types(events.NetworkStepFailed)
        pending = network.pending
        assert isinstance(pending, effects.EnsureNetwork)
        waits.append((pending.not_before_us - NOON_US) // SECOND_US)
    assert waits == [1, 2, 4, 8, 16] + [32] * 5
    assert view(state_of(network), "host1", 3).phase == "restoring"
    assert state_of(network).failure is not None
    network = network.when(effects.NetworkEnsured("ensure-11", "boot1")).then(UP)
    assert state_of(network).failure is None


def test_a_creation_that_fails_for_good_is_rolled_back_and_says_why() -> None:
    network = given(REQUESTED)
    for _ in range(ATTEMPT_LIMIT - 1):
        network = network.when(failed()).then_types(events.NetworkStepFailed)
    network = network.when(failed()).then_types(events.NetworkStepFailed, events.NetworkUndone)
    assert isinstance(network.pending, effects.RemoveNetwork)
    assert not is_made(state_of(network))
    network = network.when(effects.NetworkRemoved("remove-1")).then(DELETED)
    with pytest.raises(Refused, match="the network could not be created: no bridge") as refused:
        is_made(state_of(network))
    assert hint(refused.value.remedy) == "load it"
    assert holds(state_of(network)) == ()


def test_one_that_is_in_use_is_not_deleted_and_the_users_are_named() -> None:
    users = tuple(User("vm", "VM", f"{number:016x}", f"vm{number}") for number in range(7))
    words = "the network 'lab' is in use by 7 VM(s): vm0, vm1, vm2, vm3, vm4 …"
    given(REQUESTED, UP).when(commands.DeleteNetwork(ID, users)).is_refused(409, words)
    with pytest.raises(Refused) as refused:
        NETWORKS.decide(given(REQUESTED, UP).state, commands.DeleteNetwork(ID, users), NOON_US)
    assert hint(refused.value.remedy) == (
        "detach each from it, or delete it where this is its only network; of the first: aetherscale vm show vm0"
    )


@pytest.mark.parametrize("past", [(REQUESTED,), (REQUESTED, UP), (REQUESTED, UP, DOWN)])
def test_one_is_deleted_in_every_phase(past: Sequence[events.NetworkEvent]) -> None:
    network = given(*past).when(commands.DeleteNetwork(ID)).then(DELETING)
    assert isinstance(network.pending, effects.RemoveNetwork)
    network.when(commands.DeleteNetwork(ID)).nothing_happens()
    network.when(effects.NetworkEnsured("ensure-1", "boot1")).nothing_happens()
    network = network.when(effects.NetworkRemoved("remove-1")).then(DELETED)
    assert is_deleted(state_of(network))
    network.when(commands.DeleteNetwork(ID)).is_refused(404, "no such network: it has been deleted")


def test_a_deletion_that_fails_for_good_says_so_and_can_be_asked_for_again() -> None:
    network = given(REQUESTED, UP, DELETING).when(failed(retryable=False)).then_types(events.NetworkStepFailed)
    assert network.pending is None
    with pytest.raises(Refused, match="the network 'lab' could not be deleted: no bridge"):
        is_deleted(state_of(network))
    assert isinstance(network.when(commands.DeleteNetwork(ID)).then(DELETING).pending, effects.RemoveNetwork)


def test_what_it_holds_is_its_name_and_each_block_of_its_prefixes() -> None:
    assert holds(state_of(given(REQUESTED))) == (
        Name("network", "lab"),
        NodeKey("prefix", "10.64.3.0/24"),
        NodeKey("prefix", "fd12:3456:789a:bcde::/64"),
    )


prefixes = st.builds(
    lambda address, bits: str(ip_network((address & (0xFFFFFFFF << (32 - bits)) & 0xFFFFFFFF, bits))),
    st.integers(0x0A000000, 0x0A00FFFF),
    st.integers(16, 30),
)


@assuming(prefixes, prefixes)
def test_prefixes_that_overlap_have_a_block_in_common(one: str, other: str) -> None:
    overlap = ip_network(one).overlaps(ip_network(other))
    in_common = bool(set(blocks(one)) & set(blocks(other)))
    assert in_common or not overlap
    # Smaller ones have a whole block to themselves; of larger ones it is exactly so.
    if (
        min(ip_network(one).prefixlen, ip_network(other).prefixlen)
        <= 24
        <= 24
        >= max(ip_network(one).prefixlen, ip_network(other).prefixlen)
    ):
        assert in_common == overlap


MESSAGES = st.sampled_from([
    commands.CreateNetwork(ID, SPEC), commands.DeleteNetwork(ID), LOST, commands.NetworkLost(ID, "the bridge is gone"),
    effects.NetworkEnsured("", "boot1"), effects.NetworkRemoved(""), failed(), failed(retryable=False),
])  # fmt: skip


@assuming(st.lists(MESSAGES, max_size=30))
def test_whatever_is_said_to_it_all_that_is_shown_of_it_can_be_made(said: list[Any]) -> None:
    state: Network | None = None
    for message in said:
        try:
            decided = NETWORKS.decide(state, message, NOON_US)
        except Refused:
            continue
        for event in decided:
            assert NETWORK_KIND.descriptions.describe(state, event).text
            state = NETWORKS.evolve(state, event, NOON_US)
            announce(state, event)
            view(state, "host1", 1)
            assert NETWORK_KIND.descriptions.summarize(state)
            at_work = NETWORKS.pending(state) is not None
            assert at_work == (state.phase in ("creating", "restoring", "deleting") and not state.attempt.blocked)
            assert not (state.phase == "restoring" and state.attempt.blocked)
