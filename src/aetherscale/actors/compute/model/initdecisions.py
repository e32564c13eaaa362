"""What follows from what is said of a VM's init script, and when one who waits for it has waited enough. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aetherscale.actors.compute.model import effects, events
from aetherscale.actors.compute.model.commands import CreateVmOptions
from aetherscale.actors.compute.model.events import VmEvent
from aetherscale.actors.compute.model.initsentences import how_it_ended
from aetherscale.actors.compute.model.presentation import is_up
from aetherscale.actors.compute.model.ruledecisions import never_given_up
from aetherscale.actors.compute.model.state import STOPPING, UP, Vm
from aetherscale.kernel.errors import Reason, Refused, Remedy, Task
from aetherscale.kernel.failures import EffectFailed


def init_ended(vm: Vm, told: effects.InitEnded) -> Sequence[VmEvent]:
    """The guest's word is taken once, of the run that is there, and only of a VM that has a script."""
    lives = vm.phase == "booting" or vm.phase in UP or vm.phase in STOPPING
    if not vm.init.is_awaited or not lives:
        return ()
    return (events.VmInitEnded(vm.run.number, told.outcome, told.exit_status, told.output),)


def failed_to_remove_script(vm: Vm, failed: EffectFailed, at_us: int) -> Sequence[VmEvent]:
    """A secret that is no longer of use is to be gone: that is never given up."""
    return never_given_up(vm, "removing-script", vm.init.attempt.number, failed, at_us)


def is_made(vm: Vm, options: CreateVmOptions) -> bool:
    """Whether a VM that was to be made is as far as its caller waits for; raises `Refused` where it will not be.

    A script that has not ended well is told once the guest is ready, so that both are said as they are.
    """
    until = "its init script had ended" if options.wait_for == "init" and vm.init.is_awaited else "it was ready"
    if not is_up(vm, until=until):
        return False
    if options.wait_for != "init" or vm.init.has_succeeded:
        return True
    if vm.init.is_awaited:
        return False
    raise Refused(
        Reason.INTERNAL,
        f"the init script of the VM {vm.name!r} {how_it_ended(vm.init)}; the VM itself is {vm.shown}, and goes on",
        remedy=_where_its_output_is(vm),
        details={"vm-id": vm.id, "phase": vm.shown, "exit-status": vm.init.exit_status, "log-tail": vm.init.output},
    )


def _where_its_output_is(vm: Vm) -> Remedy:
    """A guest of `tiny` has it on the serial line, one of a Debian in its journal."""
    if vm.spec.first_boot == "tiny":
        return (Task("vm", "logs", vm.name),)
    return (Task("vm", "show", vm.name), "; in the guest: journalctl -u aetherscale-init")
