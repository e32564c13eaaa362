"""What was ever said to VMs, and what came of it, as an earlier version has recorded it: it comes of it today.

`tests/golden/vms.jsonl.gz` has a line for each VM: what was said to it step by step, with the code of a refusal, and
for each event that followed the event itself, the status that a caller is sent, what it reserves, and what has changed
since in the view and in how tasks end. The model that has recorded it had other fields for a VM's state; none of them
is in it. The file is never made anew: where a view is changed on purpose, a program changes that in it and nothing
else.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.presentation import announce, holds, is_deleted, is_stopped, is_up, view
from aetherscale.actors.compute.model.state import Vm
from aetherscale.bus.refusals import CODES
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.reservations import changes
from tests.support.spec import NOON_US

GOLDEN: Final = Path(__file__).parents[4] / "golden" / "vms.jsonl.gz"
ENDS: Final = {"create-vm": is_up, "stop-vm": is_stopped, "delete-vm": is_deleted}
SINCE: Final = (
    "publish",
    "host-loopback",
    "groups",
    "forwards",
    "rules-revision",
    "rules-applied",
    "switches",
    "ssh-keys",
    "image-sha256",
    "first-boot",
    "init-script",
    "init-sha256",
    "cloud-init-sha256",
    "by-seed",
    "gives-user-data",
    "gives-script",
    "user",
    "hostname",
)
ADDED_SINCE: Final = {
    "GroupsSet", "ForwardAdded", "ForwardRemoved", "RulesApplied", "PortAdded", "PortPlugged", "PortRemoved",
    "PortUnplugged", "VmInitEnded", "VmInitScriptRemoved", "InitEnded",
    "ScriptRemoved",
}  # fmt: skip
Steps = list[dict[str, Any]]


def recorded() -> Iterator[Steps]:
    with gzip.open(GOLDEN, "rt") as lines:
        for line in lines:
            yield json.loads(line)


def plain(thing: Any) -> Any:
    """As JSON has it."""
    return json.loads(msgspec.json.encode(thing))


def without(fields: dict[str, Any], *added: str) -> dict[str, Any]:
    """The fields but those that were added since: none of the lives has anything in them."""
    for name in (*added, *(name.replace("-", "_") for name in added)):
        assert not fields.pop(name, None)
    return fields


def named(thing: Any) -> Any:
    """A Struct with the name of its type, without what was added since the lives were recorded."""
    if thing is None:
        return None
    fields = plain(thing)
    if "user-kind" in fields:  # a reservation: its user is no field of a VM
        return [type(thing).__name__, fields]
    if isinstance(thing, effects.BootVm):
        assert thing.rules == commands.NO_RULES
        del fields["rules"]
    for place in (fields, fields.get("spec", {})):
        without(place, "ports", *SINCE)
    return [type(thing).__name__, fields]


def message(named_message: tuple[str, Any]) -> Any:
    name, fields = named_message
    return msgspec.convert(fields, getattr(commands, name, None) or getattr(effects, name))


def end_of(task: str, vm: Vm) -> Any:
    try:
        return ENDS[task](vm)
    except Refused as refused:
        return CODES[refused.reason]


def seen(vm: Vm, version: int) -> dict[str, Any]:
    """All that a VM shows of itself."""
    fields = without(plain(view(vm, "host1", version)), *SINCE)
    shown = {f"view.{name}": value for name, value in fields.items()}
    return shown | {f"end.{task}": end_of(task, vm) for task in ENDS}


def lived(steps: Steps) -> Steps:
    """The same steps, with what comes of them today."""
    vm: Vm | None = None
    version, before, again = 0, dict[str, Any](), []
    for step in steps:
        at_us = NOON_US + step["at_us"]
        found: dict[str, Any] = {"at_us": step["at_us"], "say": step["say"]}
        again.append(found)
        try:
            decided = COMPUTE.decide(vm, message(step["say"]), at_us)
        except Refused as refused:
            found["refused"] = CODES[refused.reason]
            continue
        found["then"] = []
        for event in decided:
            held = holds(vm) if vm else ()
            vm, version = COMPUTE.evolve(vm, event, at_us), version + 1
            now = seen(vm, version)
            found["then"].append({
                "event": named(event),
                "status": announce(vm, event),
                "reserves": [named(each) for _, each in changes(events.KIND, vm.id, "default", held, holds(vm))],
                "now": {name: value for name, value in now.items() if name not in before or before[name] != value},
            })  # fmt: skip
            before = now
        if decided:
            assert vm is not None
            found["pending"] = named(COMPUTE.pending(vm))
    return again


@pytest.mark.parametrize("steps", tuple(recorded()))
def test_it_comes_of_it_what_came_of_it(steps: Steps) -> None:
    assert lived(steps) == steps


def test_every_event_and_every_message_is_among_them() -> None:
    steps = [step for vm in recorded() for step in vm]
    messages = commands.ComputeCommand | commands.ComputeFinding | effects.ComputeObservation | effects.ComputeOutcome
    assert {step["say"][0] for step in steps} == {each.__name__ for each in messages.__args__} - ADDED_SINCE
    found = {each["event"][0] for step in steps for each in step.get("then", ())}
    assert found == {each.__name__ for each in events.VmEvent.__args__} - ADDED_SINCE
