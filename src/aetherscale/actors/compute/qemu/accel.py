"""Which accelerator a VM gets. `auto` takes KVM only after a proof, and never again once KVM has failed a guest.

That /dev/kvm can be opened says little: there are hosts where it can, and QEMU aborts over a register it may not set,
or every instruction is emulated in the kernel, a thousand times too slow. The proof is QEMU itself with the CPU model
and in the jail that guests get, running `rom.py`. Its verdict holds for this boot of the host and this QEMU binary.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from aetherscale.actors.compute.qemu import argv, identity, rom
from aetherscale.kernel.fault import Fault
from aetherscale.processes import launch, users
from aetherscale.settings import Accelerator
from aetherscale.statedir import write_file

log = logging.getLogger(__name__)

PROOF_LIMIT_S: Final = 2.0
CPUS_LIMIT_S: Final = 10.0
"""How long QEMU may take to refuse a number of CPUs."""
KVM: Final = Path("/dev/kvm")
_CACHE: Final = "accelerator.json"
_REFUSED: Final = 1
"""QEMU's exit code for what it does not take (error_report and exit, in its sources); trouble is an abort."""


class Verdict(Struct, frozen=True, rename="kebab"):
    """Whether KVM can be trusted, and why not."""

    boot_id: str
    qemu: str
    works: bool
    reason: str


class Choice(NamedTuple):
    """The accelerator of a VM, and the supplementary group that its process needs for it."""

    accelerator: Literal["kvm", "tcg"]
    group: int | None


class Accelerators:
    """Chooses for each VM that is started. `state_dir` keeps the verdict."""

    def __init__(self, setting: Accelerator, state_dir: Path, proof_limit_s: float = PROOF_LIMIT_S) -> None:
        self._setting = setting
        self._cache = state_dir / _CACHE
        self._proof_limit_s = proof_limit_s
        self._verdict: Verdict | None = None
        self._turn = asyncio.Lock()

    async def choose(self, qemu: str, vm_id: str) -> Choice:
        """The accelerator for a VM. Raises `Fault` where the setting is `kvm` and KVM cannot be had."""
        uid = users.uid_of(vm_id)
        match self._setting:
            case "tcg":
                return Choice("tcg", None)
            case "kvm":
                return Choice("kvm", _kvm_group(uid))
            case "auto":
                try:
                    group = _kvm_group(uid)
                except Fault as fault:
                    log.info("no KVM: %s", fault.reason)
                    return Choice("tcg", None)
                verdict = await self._judge(qemu, launch.jail_of(vm_id, group))
                return Choice("kvm", group) if verdict.works else Choice("tcg", None)

    def distrust(self, qemu: str, reason: str) -> None:
        """KVM has failed a guest: `auto` means TCG from now on, until the host or QEMU changes. Raises `OSError`."""
        self._settle_on(Verdict(identity.boot_id(), fingerprint(qemu), works=False, reason=reason))

    async def _judge(self, qemu: str, jail: launch.Jail) -> Verdict:
        async with self._turn:
            boot, binary = identity.boot_id(), fingerprint(qemu)
            known = self._verdict or self._read()
            if known is not None and (known.boot_id, known.qemu) == (boot, binary):
                return known
            reason = await failure_of("kvm", qemu, jail, self._proof_limit_s)
            verdict = Verdict(boot, binary, works=not reason, reason=reason)
            self._settle_on(verdict)
            return verdict

    def _settle_on(self, verdict: Verdict) -> None:
        log.warning(
            "KVM is %s: %s", "trusted" if verdict.works else "not used", verdict.reason or "it passed the proof"
        )
        self._verdict = verdict
        write_file(self._cache, msgspec.json.encode(verdict))

    def _read(self) -> Verdict | None:
        try:
            return msgspec.json.decode(self._cache.read_bytes(), type=Verdict)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            log.warning("%s is not what the node wrote there: %s", self._cache, error)
            return None


async def failure_of(accelerator: Literal["kvm", "tcg"], qemu: str, jail: launch.Jail, limit_s: float) -> str:
    """Run the proof. Returns why not to trust the accelerator, empty if it passed. Raises `OSError`, `Fault`."""
    code, said = await _proof(accelerator, qemu, jail, limit_s)
    if code == rom.EXIT_CODE:
        return ""
    if code is None:
        return f"a loop of 2²⁵ instructions was not done within {limit_s:g} s, as if each were emulated"
    return f"QEMU ended with {code} in the proof: {said or 'it said nothing'}"


async def refusal_of_cpus(accelerator: Literal["kvm", "tcg"], qemu: str, jail: launch.Jail, cpus: int) -> str:
    """The error of QEMU for a machine of so many CPUs; "" where it takes it. Raises `OSError`, `Fault`.

    It says so at once. One that it takes may need long to be made, which is not waited for.
    """
    code, said = await _proof(accelerator, qemu, jail, CPUS_LIMIT_S, cpus)
    return said or "it said nothing" if code == _REFUSED else ""


async def _proof(
    accelerator: Literal["kvm", "tcg"], qemu: str, jail: launch.Jail, limit_s: float, cpus: int = 1
) -> tuple[int | None, str]:
    """The exit code of a QEMU that runs the firmware, None where it did not end in time; and what it said first."""
    # In memory: the proof shall not fail for want of a directory for temporary files.
    with os.fdopen(os.memfd_create("said"), "w+b") as errors:
        firmware = os.memfd_create("proof")
        try:
            os.write(firmware, rom.proof_rom())
            command = [
                *(qemu, *argv.NO_DEFAULTS, *argv.SANDBOX, "-name", "aether-proof"),
                *("-machine", "q35", "-accel", accelerator, "-cpu", "max", "-m", "16", "-no-reboot"),
                *("-smp", str(cpus)),
                *("-bios", f"/proc/self/fd/{firmware}"),
                *("-device", f"isa-debug-exit,iobase={rom.EXIT_PORT:#x}"),
            ]
            pid = launch.spawn(command, jail, Path("/"), errors.fileno(), [firmware])
        finally:
            os.close(firmware)
        code = await _exit_code(pid, limit_s)
        errors.seek(0)
        said = errors.read(4096).decode(errors="replace").strip().splitlines()
        return code, said[0] if said else ""


async def _exit_code(pid: int, limit_s: float) -> int | None:
    """How the process ended; None, and it is killed, where it did not in time."""
    pidfd = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    in_time = False
    try:
        async with asyncio.timeout(limit_s):
            await ended.wait()
            in_time = True
    except TimeoutError:
        log.debug("the proof of KVM has run out of time")
    finally:
        loop.remove_reader(pidfd)
        if not in_time:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        code = _collected(pidfd)
    return code if in_time else None


def _collected(pidfd: int) -> int:
    """The exit code of a child that has ended or has been killed, negative for a signal; closes the pidfd."""
    status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    assert status is not None, "waitid without WNOHANG has an answer"
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


def _kvm_group(uid: int | None) -> int | None:
    """The group that a process of this uid needs to open /dev/kvm, if any. Raises `Fault` where it cannot."""
    try:
        node = KVM.stat()
    except FileNotFoundError:
        raise Fault(
            "/dev/kvm does not exist",
            remedy="turn virtualization on in the firmware, or load kvm_intel or kvm_amd; or use --accelerator tcg",
            retryable=False,
        ) from None
    wanted = stat.S_IROTH | stat.S_IWOTH
    if node.st_mode & wanted == wanted or (uid is None and os.access(KVM, os.R_OK | os.W_OK)):
        return None
    wanted = stat.S_IRGRP | stat.S_IWGRP
    may_have = users.way() == "switch" or node.st_gid in os.getgroups()
    if uid is not None and node.st_mode & wanted == wanted and node.st_gid != 0 and may_have:
        return node.st_gid
    raise Fault(
        "/dev/kvm is not open to the VM's user",
        remedy="chgrp kvm /dev/kvm; chmod 660 /dev/kvm; a node that is not root needs to be in the group kvm",
        retryable=False,
    )


def fingerprint(qemu: str) -> str:
    """Identifies a binary for as long as it is not replaced. Raises `OSError`."""
    status = Path(qemu).stat()
    return f"{qemu}:{status.st_size}:{status.st_mtime_ns}"
