"""What has happened to a VM, to decide on."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from aetherscale.actors.compute.model import commands, events
from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.state import Vm
from aetherscale.kernel.failures import EffectFailed
from tests.support.spec import Given

VM = "0123456789abcdef"
SPEC = commands.VmSpec(
    name="web",
    image_id="1123456789abcdef",
    image="tiny",
    image_format="raw",
    image_size_bytes=1 << 20,
    ready_channel="channel",
    cpus=1,
    memory_mib=128,
    disk_mib=1024,
    restart="on-failure",
    autostart=True,
    labels={},
)
MORE = commands.PortSpec("8" * 16, "dmz", "web", "aep0123456789ac", "52:54:00:00:00:02", "10.9.9.2", "fd00::2")
PORT = commands.PortSpec("7" * 16, "lab", "web", "aep0123456789ab", "52:54:00:00:00:01", "10.9.8.2", None)
WEB, SSH = commands.BorneGroup("a" * 16, "web"), commands.BorneGroup("3" * 16, "ssh")
FORWARD = commands.Forward("5" * 16, "tcp", "", 8080, 80)
CREATE = commands.CreateVm(VM, SPEC)
REQUESTED = events.VmRequested(VM, SPEC)
DISK = events.DiskProvisioned(1024)
BOOTED = events.VmBooted(1, 4711, 99, "boot-a", "tcg")
READY = events.VmReady(1, "channel")
STOP = commands.StopVm(VM, kill=False, grace_s=30)
KILL = commands.StopVm(VM, kill=True, grace_s=30)
START = commands.StartVm(VM)
RESTART = commands.RestartVm(VM)
DELETE = commands.DeleteVm(VM, kill=False, grace_s=30)
STOPPING = events.VmStopRequested(kill=False, grace_s=30)
ENDED = events.VmEnded(1, "shutdown", "")


def given(*past: events.VmEvent) -> Given[Vm, Any, Any, Any]:
    return Given(COMPUTE, past)


def running(restart: Any = "on-failure") -> Given[Vm, Any, Any, Any]:
    return given(replace(REQUESTED, spec=replace(SPEC, restart=restart)), DISK, BOOTED, READY)


def exited(reason: events.ExitReason, run: int = 1, **more: Any) -> events.VmExited:
    fields: dict[str, Any] = {"exit_code": None, "signal": None, "detail": "", "log_tail": ""} | more
    return events.VmExited(run=run, reason=reason, **fields)


def failed(key: str, *, retryable: bool = True) -> EffectFailed:
    return EffectFailed(key, "it broke", "mend it", retryable, "the end of the log")


def phase_of(vm: Given[Vm, Any, Any, Any]) -> str:
    assert vm.state is not None
    return vm.state.shown


def state_of(*past: events.VmEvent) -> Vm:
    state = given(*past).state
    assert state is not None
    return state
