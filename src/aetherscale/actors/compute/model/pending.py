"""What is pending on the host for a VM: one effect, or none, for each phase; nothing else is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from aetherscale.actors.compute.model.effects import (
    ApplyRules,
    BootVm,
    ComputeEffect,
    EndVm,
    PlugPort,
    ProvisionDisk,
    QuarantineVm,
    RemoveScript,
    RemoveVm,
    ShutDownVm,
    UnplugPort,
)
from aetherscale.actors.compute.model.firstboot import TAKES
from aetherscale.actors.compute.model.portdecisions import to_plug, to_unplug
from aetherscale.actors.compute.model.state import Vm, VmPhase

PROVISION_S: Final = 60.0
"""How long a disk may take to be made."""
SLOWEST_COPY_BYTES_S: Final = 4 * 1024 * 1024
"""And a second more for each of these of its image, where that has to be copied."""
ASKING_S: Final = 30.0
"""How much longer than the guest's time a graceful stop may take: QEMU has to be asked, and may hang."""


def pending(vm: Vm) -> ComputeEffect | None:
    """The one piece of work that is pending on the host now."""
    return PENDING[vm.phase](vm)


def _nothing(vm: Vm) -> None:
    return None


def _provision(vm: Vm) -> ProvisionDisk:
    return ProvisionDisk(
        key=f"provision-{vm.attempt.number}",
        vm_id=vm.id,
        image_id=vm.spec.image_id,
        image_format=vm.spec.image_format,
        disk_mib=vm.spec.disk_mib,
        image_size_bytes=vm.spec.image_size_bytes,
        image_sha256=vm.spec.image_sha256,
        deadline_s=PROVISION_S + vm.spec.image_size_bytes / SLOWEST_COPY_BYTES_S,
        not_before_us=vm.attempt.not_before_us,
    )


def _boot(vm: Vm) -> BootVm:
    return BootVm(
        key=f"boot-{_tried(vm)}",
        vm_id=vm.id,
        run=vm.run.number,
        cpus=vm.spec.cpus,
        memory_mib=vm.spec.memory_mib,
        ready_channel=vm.spec.ready_channel,
        image_format=vm.spec.image_format,
        ports=vm.run.ports,
        switches=tuple(vm.spec.switches),
        publish=tuple(vm.spec.publish),
        host_loopback=vm.spec.host_loopback,
        rules=vm.rules.for_kernel(),
        ssh_keys=tuple(vm.spec.ssh_keys),
        user=vm.spec.user,
        hostname=vm.name if vm.spec.first_boot and "host name" in TAKES[vm.spec.first_boot] else None,
        gives_script=vm.init.is_awaited,
        by_seed=vm.spec.first_boot == "cloud-init",
        gives_user_data=vm.spec.cloud_init_sha256 is not None,
        not_before_us=vm.attempt.not_before_us,
    )


def _shut_down(vm: Vm) -> ShutDownVm:
    return ShutDownVm(
        # Another grace period begins anew: the last request counts.
        key=f"shut-down-{_tried(vm)}-{vm.grace_s:g}",
        vm_id=vm.id,
        run=vm.run.number,
        grace_s=vm.grace_s,
        deadline_s=vm.grace_s + ASKING_S,
        not_before_us=vm.attempt.not_before_us,
    )


def _end(vm: Vm) -> EndVm:
    return EndVm(key=f"end-{_tried(vm)}", vm_id=vm.id, run=vm.run.number, not_before_us=vm.attempt.not_before_us)


def _clear(vm: Vm) -> EndVm:
    return EndVm(key=f"clear-{_tried(vm)}", vm_id=vm.id, run=vm.run.number, not_before_us=vm.attempt.not_before_us)


def _remove(vm: Vm) -> RemoveVm:
    return RemoveVm(
        key=f"remove-{vm.attempt.number}",
        vm_id=vm.id,
        run=vm.run.number,
        ports=vm.ports.specs(),
        not_before_us=vm.attempt.not_before_us,
    )


def _quarantine(vm: Vm) -> QuarantineVm:
    return QuarantineVm(
        key=f"quarantine-{vm.quarantined_as}-{vm.attempt.number}",
        vm_id=vm.id,
        quarantine_as=vm.quarantined_as,
        not_before_us=vm.attempt.not_before_us,
    )


def _at_rest(vm: Vm) -> ApplyRules | UnplugPort | RemoveScript | None:
    """What is left to do where nothing else is. Ports wait for rules, but not for those that the kernel refuses."""
    rules = _apply_rules(vm)
    return rules if rules is not None and vm.rules.failure is None else _unplug(vm) or _remove_script(vm) or rules


def _while_up(vm: Vm) -> ApplyRules | UnplugPort | PlugPort | RemoveScript | None:
    """The same of a VM that runs. A boot has the rules and the ports of its beginning with it, so all that comes after
    one is an ensure.
    """
    rules = _apply_rules(vm)
    if rules is not None and vm.rules.failure is None:
        return rules
    return _unplug(vm) or _plug(vm) or _remove_script(vm) or rules


def _remove_script(vm: Vm) -> RemoveScript | None:
    """Once its end is told nobody needs it: what is left of a VM that is deleted is removed with the rest."""
    if not vm.init.is_kept or vm.init.is_awaited or vm.requested == "deleted":
        return None
    return RemoveScript(f"script-{vm.init.attempt.number}", vm.id, not_before_us=vm.init.attempt.not_before_us)


def _unplug(vm: Vm) -> UnplugPort | None:
    port = to_unplug(vm)
    if port is None or vm.requested == "deleted":
        return None
    key = f"unplug-{port.tap}-{vm.run.number}-{vm.ports.attempt.number}"
    return UnplugPort(key, vm.id, port, not_before_us=vm.ports.attempt.not_before_us)


def _plug(vm: Vm) -> PlugPort | None:
    port = to_plug(vm)
    if port is None or port.tap not in vm.run.slots or vm.requested == "deleted":
        return None
    key = f"plug-{port.tap}-{vm.run.number}-{vm.ports.attempt.number}"
    return PlugPort(key, vm.id, port, vm.run.slots.index(port.tap), not_before_us=vm.ports.attempt.not_before_us)


def _apply_rules(vm: Vm) -> ApplyRules | None:
    rules = vm.rules
    if rules.is_applied or vm.requested == "deleted":
        return None
    return ApplyRules(
        key=f"rules-{rules.revision}-{rules.attempt.number}",
        vm_id=vm.id,
        revision=rules.revision,
        rules=rules.for_kernel(),
        keep_established=rules.keep_established,
        not_before_us=rules.attempt.not_before_us,
    )


def _tried(vm: Vm) -> str:
    return f"{vm.run.number}-{vm.attempt.number}"


PENDING: Final[Mapping[VmPhase, Callable[[Vm], ComputeEffect | None]]] = {
    "provisioning": _provision,
    "booting": _boot,
    "running": _while_up,
    "ready": _while_up,
    "paused": _while_up,
    "shutting-down": _shut_down,
    "ending": _end,
    "stopped": _at_rest,
    "failed": _at_rest,
    "clearing": _clear,
    "failing": _clear,
    "removing": _remove,
    "rolling-back": _remove,
    "quarantining": _quarantine,
    "deleted": _nothing,
}
"""Total, and without order."""
