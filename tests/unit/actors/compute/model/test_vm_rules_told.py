"""When a change of a VM's groups or forwards has come to its end, and when its caller is told that it will not."""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.commands import Forward
from aetherscale.actors.compute.model.rulecommands import AddForwardOptions, GroupOfVmOptions, RemoveForwardOptions
from aetherscale.actors.compute.model.ruledecisions import are_applied, bears, has_forward
from aetherscale.kernel.errors import Refused
from tests.support.vm_pasts import BOOTED, DISK, FORWARD, PORT, READY, REQUESTED, SPEC, SSH, WEB, state_of

OTHER: Final = Forward("6" * 16, "udp", "192.0.2.1", 8080, 53)
UP: Final = (replace(REQUESTED, spec=replace(SPEC, ports=[PORT])), DISK, BOOTED, READY)
BEARS_WEB: Final = (*UP, events.GroupsSet([WEB]), events.RulesApplied(1))
LEADS: Final = (*UP, events.ForwardAdded(FORWARD), events.RulesApplied(1))
DELETING: Final = events.VmDeleteRequested(kill=False, grace_s=30)


def test_they_are_applied_or_not_yet() -> None:
    assert are_applied(state_of(*UP), stands=True) is True
    assert are_applied(state_of(*UP, events.GroupsSet([WEB])), stands=True) is False
    assert are_applied(state_of(*BEARS_WEB), stands=True) is True


def test_a_deletion_comes_first() -> None:
    with pytest.raises(Refused, match="was deleted before its groups and forwards were applied"):
        are_applied(state_of(*UP, events.GroupsSet([WEB]), DELETING), stands=True)


def test_so_does_a_request_that_takes_it_back() -> None:
    with pytest.raises(Refused, match="another request took this back before the kernel had it for the VM 'web'"):
        are_applied(state_of(*BEARS_WEB), stands=False)


@pytest.mark.parametrize("group", [WEB.group, WEB.group_id])
def test_a_group_is_borne_until_it_is_taken_away(group: str) -> None:
    for past, is_borne in (((), False), ((events.GroupsSet([WEB]),), True), ((events.GroupsSet([SSH]),), False)):
        assert bears(state_of(*UP, *past), GroupOfVmOptions(group)) is is_borne


def test_a_forward_is_there_until_it_is_removed() -> None:
    by_port: dict[str, Any] = {"host_port": FORWARD.host_port, "protocol": FORWARD.protocol}
    asked = (
        AddForwardOptions(guest_port=FORWARD.guest_port, **by_port),
        RemoveForwardOptions(**by_port),
        RemoveForwardOptions(forward=FORWARD.id),
    )
    for options in asked:
        assert has_forward(state_of(*LEADS), options)
        assert not has_forward(state_of(*UP, events.ForwardAdded(OTHER)), options)
        assert not has_forward(state_of(*LEADS, events.ForwardRemoved(FORWARD.id)), options)
