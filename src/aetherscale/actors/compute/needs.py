"""The requirements of virtual machines, for `doctor`. Looks and tries, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final, Literal

from aetherscale import service
from aetherscale.actors.compute.qemu import accel, base, supervision
from aetherscale.actors.compute.qemu.driver import QEMU as QEMU_PROGRAM
from aetherscale.kernel.fault import Fault
from aetherscale.kernel.findings import Finding
from aetherscale.kernel.names import derive_id
from aetherscale.processes import launch, users
from aetherscale.settings import Settings

QEMU: Final = (7, 2)
VDE_SWITCH: Final = "vde_switch"
CALL_S: Final = 20.0
"""How long a program may take to print its version."""
OWN_USERS: Final = "for a user of its own for each VM: sudo aetherscale host setup"


def findings(settings: Settings) -> Iterator[Finding]:
    """All findings."""
    yield from _qemu(settings)
    yield from _jail(settings)
    yield from _supervision(settings)
    yield from _accelerator(settings)
    yield from _apart(settings)
    yield _switches()


def _qemu(settings: Settings) -> Iterator[Finding]:
    remedy = f"apt-get install {launch.WITHOUT_MORE} qemu-system-x86"
    if platform.machine() != "x86_64":
        yield Finding("machine", "error", platform.machine(), "use an x86-64 host")
    path = shutil.which(QEMU_PROGRAM)
    if path is None:
        yield Finding("qemu", "error", f"{QEMU_PROGRAM} is not installed", remedy)
        return
    try:
        said, machines = _said(path, "--version"), _said(path, "-machine", "help")
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("qemu", "error", f"{path} does not run: {error}", f"{remedy} --reinstall")
        return
    version = re.search(r"version (\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < QEMU:
        yield Finding("qemu", "error", said.split("\n")[0], f"install QEMU {QEMU[0]}.{QEMU[1]} or newer")
    elif not re.search(r"^q35\b", machines, re.MULTILINE):
        yield Finding("qemu", "error", "has no machine q35", remedy)
    else:
        yield Finding("qemu", "ok", f"{said.splitlines()[0]}, {path}")


def _jail(settings: Settings) -> Iterator[Finding]:
    try:
        programs = [launch.program(name) for name in ("prlimit", "setpriv", "unshare")]
        yield Finding("jail", "ok", ", ".join(programs))
    except Fault as fault:
        yield Finding("jail", "error", fault.reason, fault.remedy)
    yield _isolation(settings)


def _isolation(settings: Settings) -> Finding:
    match users.way():
        case "switch":
            return Finding("isolation", "ok", "each VM's process has a user of its own")
        case "map":
            return Finding("isolation", "ok", f"each VM's process has a user of its own, from {users.MAPPER}")
        case "none":
            lacking = f" ({users.missing_for_switching()})" if os.geteuid() == 0 else ""
            user = f"{users.name_of_this_user()}{lacking}"
            found = f"QEMU runs as {user}: a guest that breaks out of it has everything that the node has"
            if settings.allow_unisolated:
                return Finding("isolation", "warning", f"{found}; allowed by the setting allow-unisolated", OWN_USERS)
            remedy = f"{OWN_USERS}; if you trust every guest: aetherscale serve --allow-unisolated"
            return Finding(
                "isolation", "error", f"{found}, so no VM starts unless its node runs with --allow-unisolated", remedy
            )


def _supervision(settings: Settings) -> Iterator[Finding]:
    try:
        supervisor = asyncio.run(supervision.systemd_scopes())
    except Fault as fault:
        yield Finding("supervision", "warning", f"virtual machines have no limits: {fault.reason}", fault.remedy)
        return
    yield Finding("supervision", "ok", f"virtual machines are units with limits: {supervisor.name}")


def _accelerator(settings: Settings) -> Iterator[Finding]:
    qemu = shutil.which(QEMU_PROGRAM)
    if qemu is None or settings.simulated:
        return
    vm_id = derive_id("doctor")
    try:
        failure = asyncio.run(accel.failure_of("tcg", qemu, launch.jail_of(vm_id), CALL_S))
    except (Fault, OSError) as error:
        failure = str(error)
    if failure:
        yield Finding(
            "emulation",
            "error",
            failure,
            f"apt-get install {launch.WITHOUT_MORE} --reinstall qemu-system-x86; {QEMU_PROGRAM} --version",
        )
    else:
        yield Finding("emulation", "ok", "QEMU ran a program in the jail of a guest")
    yield _kvm(settings, qemu, vm_id)


def _kvm(settings: Settings, qemu: str, vm_id: str) -> Finding:
    wanted: Literal["error", "warning"] = "error" if settings.accelerator == "kvm" else "warning"
    without = "guests are emulated: many times slower, and without isolation that QEMU guarantees"
    try:
        choice = asyncio.run(accel.Accelerators("kvm", settings.state_dir).choose(qemu, vm_id))
        jail = launch.jail_of(vm_id, choice.group)
        failure = asyncio.run(accel.failure_of("kvm", qemu, jail, accel.PROOF_LIMIT_S))
    except Fault as fault:
        return Finding("kvm", wanted, f"{fault.reason}; {without}", fault.remedy)
    except OSError as error:
        return Finding(
            "kvm",
            wanted,
            f"{error}; {without}",
            "usermod -aG kvm aetherscale; systemctl restart aetherscale"
            if service.is_asked_about(settings.state_dir)
            else "run the node as root, or in the group kvm",
        )
    if failure:
        remedy = "use a host with working virtualization; on a cloud VM, one that allows nested virtualization"
        return Finding("kvm", wanted, f"{failure}; {without}", remedy)
    return Finding("kvm", "ok", "QEMU ran a program on KVM in the jail of a guest")


def _apart(settings: Settings) -> Iterator[Finding]:
    """Whether the base of a VM's disk can be a hard link to its image."""
    parts = [settings.state_dir / name for name in ("images", "vms") if (settings.state_dir / name).is_dir()]
    if len(parts) == 2 and not base.shares_files(*parts):
        found = f"{parts[0]} and {parts[1]} are on different file systems, so each VM has a copy of its image"
        yield Finding("images and VMs", "warning", found, "put both on one, and nothing is copied")


def _switches() -> Finding:
    """Whether VMs can have ports on VDE switches, which few need: that they cannot is no fault of the host."""
    path = shutil.which(VDE_SWITCH)
    found = f"{path}; aetherscale vm create --network vde:/run/lab.ctl has a card on one"
    lacking = f"{VDE_SWITCH} is not installed; only a VM with --network vde:… needs it"
    return Finding("vde", "ok", found if path else f"{lacking}: apt-get install {launch.WITHOUT_MORE} vde2")


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_S, check=True, stdin=subprocess.DEVNULL)
    return done.stdout.strip() or done.stderr.strip()
