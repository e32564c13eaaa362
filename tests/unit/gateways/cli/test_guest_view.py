"""What `vm show` says of the inside of a guest, and what `vm wait --for address` waits for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale.gateways.cli import waiting
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.guestview import PATIENCE_S, facts_of, facts_text

FACTS: dict[str, Any] = {
    "agent": "answers", "agent-version": "7.2.22", "os": "Debian GNU/Linux 12", "kernel": "6.1.0", "host-name": "web",
    "addresses": [{"interface": "eth0", "ip": "10.64.0.2"}], "load": [0.1, 0.25, 12],
    "disks": [{"mount-point": "/", "used-bytes": 1 << 30, "total-bytes": 10 << 30}],
}  # fmt: skip


def test_what_a_guest_says_is_marked_as_its_word() -> None:
    assert facts_text(FACTS).splitlines() == [
        "by its own word, through its agent 7.2.22:",
        "OS Debian GNU/Linux 12; kernel 6.1.0",
        "host name web",
        "addresses 10.64.0.2 (eth0)",
        "load 0.10 0.25 12.00",
        "disk /: 1024 of 10240 MiB used",
    ]


def test_what_it_has_not_said_is_unknown() -> None:
    assert facts_text({"agent": "absent"}) == "no guest agent answers: nothing is known of its inside"
    assert facts_text({"agent": "silent"}).splitlines() == [
        "its agent has not answered in time; what it has said, by its own word:",
        "OS unknown",
        "host name unknown",
        "addresses unknown",
        "load unknown",
    ]
    assert facts_text({"agent": "unknown"}) == "nothing is known of its inside"


def context(answer: Any) -> Any:
    def result(component: str, task: str, options: Any, timeout_s: float) -> Any:
        assert (component, task, timeout_s) == ("compute", "guest-info", PATIENCE_S)
        if isinstance(answer, Failure):
            raise answer
        return {"guest": answer}

    return SimpleNamespace(client=SimpleNamespace(result=result))


def test_a_node_that_cannot_ask_makes_nothing_known() -> None:
    vm = {"id": "1", "observed": "running"}
    assert facts_of(context(Failure(504, "late")), vm) == {"agent": "unknown"}
    assert facts_of(context(FACTS), vm) == FACTS
    assert facts_of(context(FACTS), {**vm, "observed": "exited"}) is None


LAB = {"addresses": [{"ip": "10.64.0.2"}, {"ip": "fd00:0::2"}], "tap": "aep1"}

BARE: dict[str, Any] = {"addresses": [], "tap": "a"}


@pytest.mark.parametrize(
    ("vm", "has_one"),
    [
        ({"phase": "ready", "ports": [LAB], "guest": {"addresses": [{"ip": "10.64.0.2"}]}}, True),
        ({"phase": "running", "ports": [LAB], "guest": {"addresses": [{"ip": "FD00::2"}]}}, True),
        ({"phase": "booting", "ports": [LAB], "guest": None}, False),
        ({"phase": "ready", "ports": [LAB], "guest": {"addresses": []}}, False),
        ({"phase": "ready", "ports": [LAB], "guest": {"addresses": [{"ip": "fe80::2"}, {"ip": "10.64.0.9"}]}}, False),
        ({"phase": "ready", "ports": [LAB], "guest": {"addresses": [{"ip": "x"}, {"ip": "fd00::2%eth0"}]}}, False),
        ({"phase": "ready", "ports": [LAB], "guest": {"agent": "absent"}}, True),
        ({"phase": "ready", "ports": [], "guest": {"agent": "absent"}}, False),
        ({"phase": "ready", "ports": [], "guest": {"addresses": [{"ip": "10.0.2.15"}]}}, True),
        ({"phase": "ready", "ports": [], "guest": {"addresses": [{"ip": "fe80::1"}]}}, False),
        ({"phase": "ready", "ports": [BARE], "leased": {"a": ["192.0.2.7"]}, "guest": {}}, True),
    ],
)  # fmt: skip
def test_an_address_is_there_when_the_guest_says_that_it_has_one_that_it_is_given(vm: Any, has_one: bool) -> None:
    assert waiting._is(vm, "address") is has_one


def test_an_address_of_a_vm_that_nobody_starts_is_not_waited_for() -> None:
    stopped = {"phase": "stopped", "requested": "stopped", "name": "web", "id": "1", "failure": None}
    with pytest.raises(Failure, match="no start was requested"):
        waiting._refuse_the_impossible(stopped, "address")
