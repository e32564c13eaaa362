"""What stays true of a VM whatever is said to it."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aetherscale.actors.compute.component import COMPONENT
from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.portcommands import AttachPort, AttachVmOptions, DetachPort, DetachVmOptions
from aetherscale.actors.compute.model.presentation import view
from aetherscale.actors.compute.model.rulecommands import (
    AddForward,
    AddForwardOptions,
    AttachGroup,
    DetachGroup,
    GroupOfVmOptions,
    RemoveForward,
    RemoveForwardOptions,
)
from aetherscale.actors.compute.model.sentences import VM_DESCRIPTIONS
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.model.transitions import edges
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.failures import EffectFailed
from tests.support.spec import NOON_US
from tests.support.vm_pasts import (
    CREATE,
    DELETE,
    FORWARD,
    KILL,
    MORE,
    PORT,
    RESTART,
    SPEC,
    SSH,
    START,
    STOP,
    VM,
    WEB,
    failed,
)

MESSAGES = st.one_of(
    st.sampled_from([CREATE, START, STOP, KILL, RESTART, DELETE, replace(DELETE, kill=True)]),
    st.builds(AttachGroup, st.just(VM), st.sampled_from([WEB, SSH]), st.booleans()),
    st.builds(DetachGroup, st.just(VM), st.sampled_from([WEB.group_id, SSH.group_id]), st.booleans()),
    st.sampled_from([AddForward(VM, FORWARD), RemoveForward(VM, FORWARD.id, None, "tcp")]),
    st.sampled_from([AttachPort(VM, MORE), DetachPort(VM, MORE.network_id), DetachPort(VM, PORT.network_id)]),
    st.builds(effects.GuestReady, st.just(VM), st.integers(1, 4), st.just("channel")),
    st.builds(effects.InitEnded, st.just(VM), st.integers(1, 4), st.just("ended"), st.integers(0, 1)),
    st.builds(effects.GuestEnded, st.just(VM), st.integers(1, 4), st.sampled_from(["shutdown", "panic"])),
    st.builds(effects.VmGone, st.just(VM), st.integers(1, 4), st.none(), st.one_of(st.none(), st.just(9))),
    st.builds(effects.GuestPaused, st.just(VM), st.integers(1, 4), st.just("disk")),
    st.builds(effects.GuestResumed, st.just(VM), st.integers(1, 4)),
    st.builds(commands.VmAdopted, st.just(VM), st.integers(1, 4)),
    st.builds(commands.VmLost, st.just(VM), st.integers(1, 4), st.sampled_from(["boot-a", "boot-b"])),
    st.builds(commands.VmOrphan, st.just(VM), st.booleans(), st.booleans()),
    st.sampled_from(["answer", "fail", "fail for good"]),
)

EDGES = set(edges())


def _host_says(pending: Any, how: str) -> Any:
    """An answer of the host to what is pending."""
    if how != "answer":
        return failed(pending.key, retryable=how == "fail")
    match pending:
        case effects.ProvisionDisk():
            return effects.DiskProvisioned(pending.key, pending.disk_mib)
        case effects.BootVm():
            return effects.Booted(pending.key, VM, pending.run, 4711, 99, "boot-a", "tcg")
        case effects.ShutDownVm():
            return effects.ShutdownIgnored(pending.key, pending.grace_s)
        case effects.EndVm():
            return effects.Ended(pending.key)
        case effects.ApplyRules():
            return effects.RulesApplied(pending.key, pending.revision)
        case effects.PlugPort():
            return effects.PortPlugged(pending.key)
        case effects.UnplugPort():
            return effects.PortUnplugged(pending.key, card_left=pending.port == PORT)
        case effects.RemoveScript():
            return effects.ScriptRemoved(pending.key)
        case effects.QuarantineVm():
            return effects.Quarantined(pending.key, "/kept")
        case _:
            return effects.Removed(pending.key)


class TestWhateverIsSaid:
    @settings(max_examples=400)
    @forall(st.lists(MESSAGES, max_size=40), st.sampled_from(["always", "on-failure", "never"]))
    def test_the_state_stays_whole(self, messages: list[Any], restart: Any) -> None:
        create = replace(CREATE, spec=replace(SPEC, restart=restart, ports=[PORT], init_sha256="5" * 64))
        past = list(COMPUTE.decide(None, create, NOON_US))
        state = COMPUTE.evolve(None, past[0], NOON_US)
        for number, message in enumerate(messages):
            at_us = NOON_US + number * 7_000_000
            pending = COMPUTE.pending(state)
            if isinstance(message, str):
                if pending is None:
                    continue
                message = _host_says(pending, message)
                assert COMPUTE.decide(state, message, at_us), "an answer to what is pending is never without effect"
            try:
                decided = COMPUTE.decide(state, message, at_us)
            except Refused:
                continue
            assert sum(isinstance(event, events.VmInitEnded) for event in (*past, *decided)) < 2, "told twice"
            for event in decided:
                assert VM_DESCRIPTIONS.describe(state, event).text
                before, state = state, COMPUTE.evolve(state, event, at_us)
                past.append(event)
                assert (before.phase, type(event), state.phase) in EDGES
            _is_whole(state)
            if isinstance(message, EffectFailed):
                after = COMPUTE.pending(state)
                assert after is None or pending is None or after.key != pending.key, (
                    "a failure is never retried unnoticed"
                )
        again: Vm | None = None
        for event in past:
            again = COMPUTE.evolve(again, event, NOON_US)
        assert again is not None
        assert _timeless(again) == _timeless(state)


def _timeless(vm: Vm) -> Vm:
    return replace(vm, phase_since_us=0, run=replace(vm.run, since_us=0))


WAITED_FOR: dict[str, Any] = {
    "create-vm": commands.CreateVmOptions(image="tiny", init_script="#!/bin/sh\n", wait_for="init"),
    "stop-vm": None,
    "delete-vm": None,
    "attach-group": GroupOfVmOptions(WEB.group),
    "detach-group": GroupOfVmOptions(WEB.group),
    "add-forward": AddForwardOptions(FORWARD.host_port, FORWARD.guest_port),
    "remove-forward": RemoveForwardOptions(forward=FORWARD.id),
    "attach-vm": AttachVmOptions(MORE.network),
    "detach-vm": DetachVmOptions(MORE.network),
}
"""Tasks, and options of them."""


def _is_whole(vm: Vm) -> None:
    assert view(vm, "host1", 1).phase == vm.shown
    assert VM_DESCRIPTIONS.summarize(vm)
    up = vm.phase in ("running", "ready", "paused")
    assert not up or (vm.run.process is not None and vm.observed in ("running", "paused"))
    assert vm.shown not in ("stopped", "deleted") or vm.run.process is None, "a stopped that is not stopped"
    assert vm.phase != "deleted" or COMPUTE.pending(vm) is None
    if COMPUTE.pending(vm) is None and not vm.attempt.blocked:
        assert up or vm.phase in ("stopped", "failed", "deleted"), "nothing is pending, so it must be at rest"
        assert vm.rules.is_applied or vm.requested == "deleted", "a change of its rules is forgotten"
        assert vm.init.is_awaited or not vm.init.is_kept or vm.requested == "deleted", "a script is forgotten"
    assert vm.rules.is_applied is (vm.rules.applied >= vm.rules.revision)
    assert (vm.rules.failure is None) or not vm.rules.is_applied
    for task, options in WAITED_FOR.items():
        with contextlib.suppress(Refused):
            COMPONENT.commands[task].is_done(vm, options)
