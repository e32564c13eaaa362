"""What is said of a VM's init script, in sentences. Pure."""

from __future__ import annotations

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.firstboot import FirstBoot, Gift, Init, InitOutcome
from aetherscale.actors.compute.model.state import UP, Vm
from aetherscale.kernel.descriptions import Description, consequence
from aetherscale.kernel.errors import Remedy, Task

_SIGNALS = 128


def describe_init(event: events.VmInitEnded | events.VmInitScriptRemoved) -> Description:
    """An event of it in words."""
    if isinstance(event, events.VmInitScriptRemoved):
        return consequence("its init script was removed from the host")
    return consequence(f"its init script {ended_so(event.outcome, event.exit_status)}")


def how_it_ended(init: Init) -> str:
    """`failed with exit status 7`, `was interrupted …`: what the script has done."""
    assert init.outcome is not None, "a script that has not ended has no end"
    return ended_so(init.outcome, init.exit_status)


def ended_so(outcome: InitOutcome, exit_status: int | None) -> str:
    """The same of what was told."""
    match outcome:
        case "ended" if exit_status == 0:
            return "ended with exit status 0"
        case "ended" if exit_status is not None and exit_status > _SIGNALS:
            return f"failed with exit status {exit_status}, as of signal {exit_status - _SIGNALS}"
        case "ended":
            return f"failed with exit status {exit_status}"
        case "interrupted":
            return "was interrupted: the guest went down or was rebooted while it ran, and does not run it again"
        case "not-run":
            return "was not run: the guest could not make sure that it runs once"
        case "lost":
            return "was not run: the node no longer had it when the guest was booted"


def remedy_for(gift: Gift, way: FirstBoot, image: str) -> Remedy:
    """What is to be done where guests of an image do not take something. Nothing is written into an image from outside,
    as libguestfs would.
    """
    inspect = Task("image", "inspect", image)
    if way == "none":
        needed = "nothing is written into an image from outside, so its guests need cloud-init or systemd's credentials"
        imported = "; then import it with the first-boot cloud-init or credentials. Or leave this out, or: "
        return (f"{needed}. See what it has: ", inspect, imported, Task("image", "build", "debian-12"))
    if gift == "user-data of cloud-init":
        return ("leave this out, or import an image with cloud-init with the first-boot cloud-init. See: ", inspect)
    return ("leave this out, or take an image whose guests do: ", Task("image", "build", "debian-12"))


def summarize_init(vm: Vm) -> str:
    """How it stands with the init script, where that is of interest."""
    init = vm.init
    if not init.sha256 or vm.requested == "deleted":
        return ""
    if init.outcome is None:
        return "; the end of its init script has not been reported yet" if vm.phase in UP else ""
    return "" if init.has_succeeded else f"; its init script {how_it_ended(init)}"
