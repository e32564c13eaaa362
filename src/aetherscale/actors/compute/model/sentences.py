"""What happened to a VM, and how it stands, in sentences. Pure."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.commands import VmSpec
from aetherscale.actors.compute.model.effects import Forward
from aetherscale.actors.compute.model.events import VmEvent
from aetherscale.actors.compute.model.initsentences import describe_init, summarize_init
from aetherscale.actors.compute.model.portsentences import describe_port, place_of, summarize_ports
from aetherscale.actors.compute.model.publishing import written
from aetherscale.actors.compute.model.state import FAILED_EXITS, STOPPING, Vm, exit_sentence
from aetherscale.kernel.descriptions import Description, Descriptions, consequence, observation, request
from aetherscale.kernel.errors import Remedy, Task
from aetherscale.kernel.failures import told
from aetherscale.kernel.times import to_rfc3339

_PAUSED: Final = {
    "disk": "there was no room left on the host's disk",
    "io-error": "its disk gave an I/O error",
    "internal-error": "the accelerator reported an internal error",
    "user": "another program paused it through QMP",
}
_WAY_ON: Final = {
    "disk": "make room on the host (df -h); it then resumes by itself",
    "io-error": "repair the host's disk (dmesg), then: ",
    "internal-error": "",
    "user": "resume it over QMP, or: ",
}
_STEPS: Final = {
    "provisioning": "creating its disk",
    "booting": "booting it",
    "stopping": "ending it",
    "removing": "removing it",
    "applying-rules": "applying its groups and forwards",
    "plugging": "plugging a port in",
    "unplugging": "removing a port",
    "removing-script": "removing its init script from the host",
}


def describe(vm: Vm | None, event: VmEvent) -> Description:
    """An event in words; `vm` is the state before it, None before the first."""
    if isinstance(event, events.VmRequested):
        return _requested(event.spec)
    if isinstance(event, events.VmStrayFound):
        return _orphan(vm, event)
    assert vm is not None, f"a VM's stream does not begin with {type(event).__name__}"
    match event:
        case events.DiskProvisioned():
            return consequence(f"its disk was created: {_disk(event.disk_mib)}, based on the image {vm.spec.image!r}")
        case events.VmStartRequested():
            return request(f"asked to start it{', after the stop that was under way' if vm.phase in STOPPING else ''}")
        case events.VmBooted():
            whose = _WHOSE.get(event.process_user or "own", "")
            return consequence(
                f"QEMU was started: run {event.run}, process {event.pid}{whose}, {event.accelerator.upper()}"
            )
        case events.VmReady():
            return consequence(f"the guest reported that it was ready{_channel(event)}")
        case events.VmInitEnded() | events.VmInitScriptRemoved():
            return describe_init(event)
        case events.VmPaused() | events.VmResumed():
            return _pausing(event)
        case events.VmStopRequested():
            return request(f"asked to stop it{_how(event)}")
        case events.VmRestartRequested():
            return request(f"asked to restart it, giving the guest {event.grace_s:g} s to shut down")
        case events.VmStopForced():
            return consequence(f"the guest did not shut down within {event.waited_s:g} s, so it was ended")
        case events.VmEnded():
            return _ended(vm, event)
        case events.VmExited():
            return _exited(vm, event)
        case events.VmRestartScheduled():
            if event.attempt == 0:
                return consequence("the host had been rebooted, and autostart is on, so it was to be started again")
            return consequence(
                f"restart policy {vm.spec.restart!r}: restart {event.attempt}, not before {event.not_before}"
            )
        case events.VmGaveUp():
            return consequence(f"restart policy {vm.spec.restart!r} gave up after {event.restarts} restarts")
        case events.VmAdopted():
            return observation(f"the node was started again and found run {event.run} still running")
        case events.VmStepFailed():
            return consequence(told(_STEPS[event.step], event.attempt, event.retry_at, event.reason))
        case events.VmCleared():
            return consequence("none of its processes was left")
        case events.VmCollected():
            kept = f"; its directory is kept in {event.kept_in}" if event.kept_in else ""
            return consequence(f"it was quarantined{kept}")
        case events.VmUndone():
            return consequence("it had never run, so what had been created of it was to be removed")
        case events.GroupsSet() | events.ForwardAdded() | events.ForwardRemoved() | events.RulesApplied():
            return _of_rules(vm, event)
        case events.PortAdded() | events.PortPlugged() | events.PortRemoved() | events.PortUnplugged():
            return describe_port(vm, event)
        case events.VmDeleteRequested():
            return request(f"asked to delete it{_how(event)}")
        case events.VmDeleted():
            return consequence("it was removed from the host, and its name was free again")


def _pausing(event: events.VmPaused | events.VmResumed) -> Description:
    if isinstance(event, events.VmResumed):
        return consequence("it was resumed")
    return observation(f"QEMU paused it in run {event.run}: {_PAUSED[event.reason]}{_detail(event.detail)}")


def _requested(spec: VmSpec) -> Description:
    return request(
        f"asked to create the VM {spec.name!r}: image {spec.image!r}, {spec.cpus} CPU(s), {spec.memory_mib} MiB of "
        f"memory, {_disk(spec.disk_mib)} of disk, restart policy {spec.restart!r}{_in_networks(spec)}"
        f"{_published(spec)}{_bearing(spec)}{_scripted(spec)}"
    )


def _of_rules(vm: Vm, event: events.RuleEvent) -> Description:
    match event:
        case events.GroupsSet():
            return request(_groups_set(vm, event))
        case events.ForwardAdded():
            return request(f"asked to let {_forward(event.forward)}")
        case events.ForwardRemoved():
            return request(_forward_removed(vm, event))
        case events.RulesApplied():
            return consequence("its groups and forwards were applied")


def summarize(vm: Vm) -> str:
    """How the VM stands now, and what is awaited."""
    return _summarize(vm) + _rules(vm) + summarize_ports(vm) + summarize_init(vm)


def _rules(vm: Vm) -> str:
    """What is awaited of its groups and forwards."""
    if vm.rules.is_applied or vm.requested == "deleted":
        return ""
    if vm.rules.failure is not None:
        return f"; its groups and forwards could not be applied, and are tried again: {vm.rules.failure.reason}"
    return "; its groups and forwards are being applied"


def _summarize(vm: Vm) -> str:
    match vm.phase:
        case "provisioning":
            return f"its disk is being created{_attempt(vm)}"
        case "booting":
            return f"QEMU is being started for run {vm.run.number}{_attempt(vm)}"
        case "running":
            if vm.spec.ready_channel == "none":
                return "it runs; its image cannot report that it is ready"
            return "it runs, and its guest has not reported yet that it is ready"
        case "ready":
            return "its guest has reported that it is ready"
        case "paused":
            return f"QEMU has paused it: {_PAUSED[vm.run.paused_reason or 'user']}"
        case "shutting-down":
            return f"its guest has {vm.grace_s:g} s to shut down{_then(vm)}{_attempt(vm)}"
        case "ending":
            return f"it is being ended{_then(vm)}{_attempt(vm)}"
        case "stopped" | "clearing":
            return _stopped(vm)
        case "failed" | "failing" | "rolling-back":
            assert vm.failure is not None
            return f"{vm.failure.phase}: {vm.failure.reason}"
        case "removing":
            return f"it is being removed from the host{_attempt(vm)}"
        case "quarantining":
            return f"what was found of it is being quarantined{_attempt(vm)}"
        case "deleted":
            return _deleted(vm)


def _then(vm: Vm) -> str:
    return "; after that it starts again" if vm.run.start_next else ""


def _deleted(vm: Vm) -> str:
    if vm.quarantined_as:
        return f"what was found of it, and should not have been there, is kept in {vm.quarantined_as}"
    if vm.rolled_back and vm.failure:
        return f"it never ran: {vm.failure.phase}: {vm.failure.reason}"
    return "nothing of it is left on the host"


def describe_pause(vm: Vm) -> tuple[str, Remedy]:
    """Of a paused VM: that it is, why, and what to do."""
    reason = vm.run.paused_reason or "user"
    what = f"the VM {vm.name!r} is paused: {_PAUSED[reason]}"
    if reason == "disk":
        return what, (_WAY_ON[reason],)
    again = (Task("vm", "stop", vm.name, {"kill": True}), "; ", Task("vm", "start", vm.name))
    return what, tuple(part for part in (_WAY_ON[reason], *again) if part)


def _orphan(vm: Vm | None, event: events.VmStrayFound) -> Description:
    found = " and ".join(
        what for what, there in (("a process", event.has_process), ("a directory", event.has_directory)) if there
    )
    if vm is None:
        return observation(f"the host had {found} of it, although the log did not know it")
    if vm.phase == "deleted":
        return observation(f"the host had {found} of it, although it was deleted")
    return observation("the host had a process of it, although it was not meant to run")


def _in_networks(spec: VmSpec) -> str:
    networks = "".join(f", in the network {place_of(port)}" for port in spec.ports)
    return networks + "".join(f", on the VDE switch {switch.path}" for switch in spec.switches)


def _published(spec: VmSpec) -> str:
    ports = f", published ports {', '.join(written(port) for port in spec.publish)}" if spec.publish else ""
    return f"{ports}, with access to the host's loopback" if spec.host_loopback else ports


def _bearing(spec: VmSpec) -> str:
    return f", groups {', '.join(repr(group.group) for group in spec.groups)}" if spec.groups else ""


def _scripted(spec: VmSpec) -> str:
    user = f", the user {spec.user!r}" if spec.user else ""
    data = f", user-data of SHA-256 {spec.cloud_init_sha256[:12]}…" if spec.cloud_init_sha256 else ""
    return f"{user}{data}, an init script of SHA-256 {spec.init_sha256[:12]}…" if spec.init_sha256 else f"{user}{data}"


def _groups_set(vm: Vm, event: events.GroupsSet) -> str:
    before, after = vm.rules.groups, event.groups
    given = [repr(group.group) for group in after if group not in before]
    taken = [repr(group.group) for group in before if group not in after]
    what = [f"let it bear the group {', '.join(given)}"] if given else []
    what += [f"let it bear the group {', '.join(taken)} no more"] if taken else []
    kept = ", and to keep the flows that are no longer allowed" if event.keep_established else ""
    return f"asked to {' and to '.join(what) or 'leave its groups as they are'}{kept}"


def _forward(forward: Forward) -> str:
    at = f" at {forward.address}" if forward.address else ""
    return f"the port {forward.host_port}/{forward.protocol} of the host{at} lead to its port {forward.guest_port}"


def _forward_removed(vm: Vm, event: events.ForwardRemoved) -> str:
    which = next((each for each in vm.rules.forwards if each.id == event.forward_id), None)
    words = f"the port {which.host_port}/{which.protocol} of the host" if which else "a port of the host"
    kept = ", and to keep the flows that it has led" if event.keep_established else ""
    return f"asked to let {words} lead to it no more{kept}"


def _stopped(vm: Vm) -> str:
    if vm.exit is None:
        return "it was stopped before it ran"
    ended = exit_sentence(vm.exit)
    if vm.exit.reason in ("user", "host-reboot"):
        return ended
    return f"{ended}; restart policy {vm.spec.restart!r} does not start it again"


def _ended(vm: Vm, event: events.VmEnded) -> Description:
    if event.reason == "panic":
        return observation(f"the guest's kernel panicked in run {event.run}{_detail(event.detail)}")
    if vm.run.asked_down:
        return consequence("the guest shut down")
    return observation(f"the guest shut itself down in run {event.run}")


def _exited(vm: Vm, event: events.VmExited) -> Description:
    if event.reason == "user":
        before = f"it was stopped before it ran{' again' if vm.ever_ran else ''}"
        return consequence("its process ended" if vm.run.process else before)
    if vm.run.ended is not None:
        return consequence("QEMU, which had kept it paused, ended")
    mark = f"run {event.run} ended: {exit_sentence(event)}"
    if event.reason in FAILED_EXITS and vm.spec.restart == "never":
        mark += "; restart policy 'never' does not start it again"
    return observation(mark)


def _how(event: events.VmStopRequested | events.VmDeleteRequested) -> str:
    return (
        " at once, without asking the guest" if event.kill else f", giving the guest {event.grace_s:g} s to shut down"
    )


_WHOSE: Final = {"own": "", "node": " as the node's own user", "root": " as root"}


def _channel(event: events.VmReady) -> str:
    match event.channel:
        case "agent":
            return ", through its agent"
        case "channel":
            return ", over its ready channel"
        case "none":
            return ""


def _attempt(vm: Vm) -> str:
    attempt = vm.attempt
    number = f", attempt {attempt.number}" if attempt.number > 1 else ""
    when = f", not before {to_rfc3339(attempt.not_before_us)}" if attempt.not_before_us else ""
    return number + when


def _detail(detail: str) -> str:
    return f" ({detail})" if detail else ""


def _disk(disk_mib: int) -> str:
    return f"{disk_mib // 1024} GiB" if disk_mib % 1024 == 0 else f"{disk_mib} MiB"


VM_DESCRIPTIONS: Final[Descriptions[Vm]] = Descriptions(describe, summarize)
