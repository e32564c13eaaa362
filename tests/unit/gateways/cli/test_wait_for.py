"""Waiting for a VM: the order in which it is asked for and listened to, which no clock can show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale.gateways.cli.waiting import wait_for

VM_ID = "0123456789abcdef"


class Script:
    """What the node says each time that it is asked for the VM; keeps what was done, in order."""

    def __init__(self, *phases: str) -> None:
        self.done: list[str] = []
        self._phases = iter(phases)

    def result(self, component: str, task: str, options: Mapping[str, Any], *, node: str = "") -> dict[str, Any]:
        self.done.append(f"ask for {options['vm-id']}")
        view = {"id": VM_ID, "name": "web", "phase": next(self._phases), "ready-by": "channel", "requested": "running"}
        return {"type": "result", "vm": view}

    def subscribe(self, subject: str) -> Script:
        self.done.append("listen")
        return self

    def receive(self, timeout_s: float) -> None:
        self.done.append("hear")

    @property
    def connection(self) -> Script:
        return self


@contextmanager
def _no_progress(name: str) -> Iterator[Any]:
    yield SimpleNamespace(step=lambda phase: None)


def waited(script: Script) -> str:
    """The phase in which the wait for `ready` ended."""
    context: Any = SimpleNamespace(
        client=script, settings=SimpleNamespace(tenant="default"), out=SimpleNamespace(progress=_no_progress)
    )
    found: str = wait_for(context, "web", "ready", 3600)["phase"]
    return found


LOOKED = ["ask for web", "listen", f"ask for {VM_ID}"]


@pytest.mark.parametrize("at_first", ["ready", "booting"])
def test_a_vm_that_is_as_wanted_when_somebody_listens_is_not_waited_for(at_first: str) -> None:
    script = Script(at_first, "ready")
    assert waited(script) == "ready"
    assert script.done == LOOKED


def test_whatever_is_heard_is_a_reason_to_look_again() -> None:
    script = Script("booting", "booting", "running", "ready")
    assert waited(script) == "ready"
    assert script.done == [*LOOKED, "hear", f"ask for {VM_ID}", "hear", f"ask for {VM_ID}"]
