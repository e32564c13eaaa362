"""What happened to a VM, and how it stands, in sentences. Pure."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.compute import events
from aetherscale.actors.compute.events import VmEvent
from aetherscale.actors.compute.state import FAILED_EXITS, Vm, exit_sentence
from aetherscale.kernel.telling import Telling, Told, answer, request, turn
from aetherscale.kernel.times import to_rfc3339

_HELD: Final = {
    "disk": "there was no room left on the host's disk",
    "io-error": "its disk gave an I/O error",
    "internal-error": "the accelerator reported an internal error",
    "user": "somebody paused it over QMP",
}
_WAY_ON: Final = {
    "disk": "make room on the host (df -h): it then goes on by itself",
    "io-error": "mend the host's disk (dmesg), then: aetherscale vm stop {name} --kill; aetherscale vm start {name}",
    "internal-error": "aetherscale vm stop {name} --kill; aetherscale vm start {name}",
    "user": "let it go on over QMP, or: aetherscale vm stop {name} --kill; aetherscale vm start {name}",
}
_STEPS: Final = {
    "provisioning": "making its disk",
    "booting": "booting it",
    "stopping": "ending it",
    "removing": "removing it",
}


def tell(vm: Vm | None, event: VmEvent) -> Told:
    """An event in words; `vm` is the state before it, None before the first."""
    if isinstance(event, events.VmRequested):
        spec = event.spec
        return request(
            f"asked for the VM {spec.name!r}: image {spec.image!r}, {spec.cpus} CPU(s), {spec.memory_mib} MiB of "
            f"memory, {_disk(spec.disk_mib)} of disk, restart policy {spec.restart!r}"
        )
    if isinstance(event, events.VmStrayFound):
        return _stray(vm, event)
    assert vm is not None, f"a VM's stream does not begin with {type(event).__name__}"
    match event:
        case events.DiskProvisioned():
            return answer(f"its disk was made: {_disk(event.disk_mib)} over the image {vm.spec.image!r}")
        case events.VmStartRequested():
            after_stop = ", after the stop that was under way" if vm.phase == "stopping" else ""
            return request(f"asked to start it{after_stop}")
        case events.VmBooted():
            whose = _WHOSE.get(event.process_user or "own", "")
            return answer(f"QEMU ran it: run {event.run}, process {event.pid}{whose}, {event.accelerator.upper()}")
        case events.VmReady():
            return answer(f"the guest said that it was ready{_channel(event)}")
        case events.VmPaused():
            return turn(f"QEMU held it in run {event.run}: {_HELD[event.reason]}{_detail(event.detail)}")
        case events.VmResumed():
            return answer("it ran on")
        case events.VmStopRequested():
            return request(f"asked to stop it{_how(event)}")
        case events.VmRestartRequested():
            return request(f"asked to restart it, giving the guest {event.grace_s:g} s to shut down")
        case events.VmStopForced():
            return answer(f"the guest did not shut down within {event.waited_s:g} s, so it was ended")
        case events.VmEnded():
            return _ended(vm, event)
        case events.VmExited():
            return _exited(vm, event)
        case events.VmRestartScheduled():
            if event.attempt == 0:
                return answer("the host had been rebooted, and it has autostart, so it was to start again")
            return answer(f"restart policy {vm.spec.restart!r}: restart {event.attempt}, not before {event.not_before}")
        case events.VmGaveUp():
            return answer(f"restart policy {vm.spec.restart!r} gave up after {event.restarts} restarts")
        case events.VmAdopted():
            return turn(f"the node came back and found run {event.run} alive")
        case events.VmStepFailed():
            again = f"to be tried again at {event.retry_at}" if event.retry_at else "not to be tried again"
            return answer(f"{_STEPS[event.step]} failed, attempt {event.attempt}, {again}: {event.reason}")
        case events.VmCleared():
            return answer("no process was left of it")
        case events.VmCollected():
            kept = f"; its directory is kept in {event.kept_in}" if event.kept_in else ""
            return answer(f"it is out of the way{kept}")
        case events.VmUndone():
            return answer("it had never run, so what was made of it was to be taken back")
        case events.VmDeleteRequested():
            return request(f"asked to delete it{_how(event)}")
        case events.VmDeleted():
            return answer("everything of it was removed from the host, and its name was free again")


def sum_up(vm: Vm) -> str:
    """How the VM stands now, and what is awaited."""
    match vm.phase:
        case "requested" | "provisioning":
            return f"its disk is being made{_attempt(vm)}"
        case "booting":
            return f"QEMU is being started for run {vm.run}{_attempt(vm)}"
        case "running":
            if vm.spec.ready_channel == "none":
                return "it runs; its image has no way to say that it is ready"
            return "it runs, and its guest has not said yet that it is ready"
        case "ready":
            return "its guest has said that it is ready"
        case "paused":
            return f"QEMU holds it: {_HELD[vm.paused_reason or 'user']}"
        case "stopping":
            what = "it is being ended" if vm.force else f"its guest has {vm.grace_s:g} s to shut down"
            then = "; after that it starts again" if vm.start_next else ""
            return f"{what}{then}{_attempt(vm)}"
        case "stopped":
            return _stopped(vm)
        case "failed":
            assert vm.failure is not None or vm.undone
            return f"{vm.failure.phase}: {vm.failure.reason}" if vm.failure else "what was made of it is taken back"
        case "deleted":
            if vm.kept_as:
                return f"what was found of it, and should not have been there, is kept in {vm.kept_as}"
            if vm.undone and vm.failure:
                return f"it never came to run: {vm.failure.phase}: {vm.failure.reason}"
            return "nothing of it is left on the host"


def held(vm: Vm) -> tuple[str, str]:
    """Of a paused VM: that it is, why, and what to do."""
    reason = vm.paused_reason or "user"
    return f"the VM {vm.name!r} is paused: {_HELD[reason]}", _WAY_ON[reason].format(name=vm.name)


def _stray(vm: Vm | None, event: events.VmStrayFound) -> Told:
    found = " and ".join(
        what for what, there in (("a process", event.has_process), ("a directory", event.has_directory)) if there
    )
    if vm is None:
        return turn(f"the host had {found} of it, though the log had never heard of it")
    if vm.phase == "deleted":
        return turn(f"the host had {found} of it, though it was deleted")
    return turn("the host had a process of it, though it was at rest")


def _stopped(vm: Vm) -> str:
    if vm.stray:
        return f"what was found of it is being put out of the way{_attempt(vm)}"
    if vm.requested == "deleted":
        return f"it is being removed from the host{_attempt(vm)}"
    if vm.exit is None:
        return "it was stopped before it ran"
    ended = exit_sentence(vm.exit)
    if vm.exit.reason in ("user", "host-reboot"):
        return ended
    return f"{ended}; restart policy {vm.spec.restart!r} leaves it down"


def _ended(vm: Vm, event: events.VmEnded) -> Told:
    if event.reason == "panic":
        return turn(f"the guest's kernel panicked in run {event.run}{_detail(event.detail)}")
    if vm.asked_down:
        return answer("the guest shut down")
    return turn(f"the guest shut itself down in run {event.run}")


def _exited(vm: Vm, event: events.VmExited) -> Told:
    if event.reason == "user":
        before = f"it was brought down before it ran{' again' if vm.ever_ran else ''}"
        return answer("its process ended" if vm.process else before)
    if vm.ended:
        return answer("QEMU, which had held it, ended")
    mark = f"run {event.run} ended: {exit_sentence(event)}"
    if event.reason in FAILED_EXITS and vm.spec.restart == "never":
        mark += "; restart policy 'never' leaves it so"
    return turn(mark)


def _how(event: events.VmStopRequested | events.VmDeleteRequested) -> str:
    return (
        " at once, without asking the guest" if event.kill else f", giving the guest {event.grace_s:g} s to shut down"
    )


_WHOSE: Final = {"own": "", "node": " of the node's own user", "root": " of root"}


def _channel(event: events.VmReady) -> str:
    match event.channel:
        case "agent":
            return ", through its agent"
        case "channel":
            return ", on its ready channel"
        case "none":
            return ""


def _attempt(vm: Vm) -> str:
    number = f", attempt {vm.attempt}" if vm.attempt > 1 else ""
    when = f", not before {to_rfc3339(vm.not_before_us)}" if vm.not_before_us else ""
    return number + when


def _detail(detail: str) -> str:
    return f" ({detail})" if detail else ""


def _disk(disk_mib: int) -> str:
    return f"{disk_mib // 1024} GiB" if disk_mib % 1024 == 0 else f"{disk_mib} MiB"


VM_TELLING: Final[Telling[Vm]] = Telling(tell, sum_up)
