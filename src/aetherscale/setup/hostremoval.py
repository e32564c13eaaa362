"""Take the service out of a host again; and, where that is asked for, everything that the service ever made.

What was installed of Debian's packages stays, and so does the installation of aetherscale itself.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from aetherscale import service
from aetherscale.actors.compute.qemu.identity import processes_of
from aetherscale.actors.network import removal
from aetherscale.actors.network.nft.nftables import NftError
from aetherscale.eventstore.sqlite.opening import owner_of
from aetherscale.eventstore.store import StoreError
from aetherscale.gateways.cli.program import Step
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.host import LOG_NAME
from aetherscale.service import (
    CONFIG,
    GROUP,
    READER,
    READER_SOCKET_UNIT,
    READER_UNIT,
    RUN_DIR,
    STATE_DIR,
    UNIT,
    UNITS,
    USER,
)
from aetherscale.setup import hostnetworks, hostuids
from aetherscale.setup.hostbridge import UNDO, Bridges
from aetherscale.setup.hostsetup import COMPLETION, LINGERING, PROGRAM
from aetherscale.setup.hostwork import Part, ended, group, require_systemd, run, says, steps

VMS: Final = STATE_DIR / "vms"
DEATH_S: Final = 20.0
"""How long QEMU may take to end after SIGKILL."""
SLICE: Final = "aetherscale.slice"
ALL_UNITS: Final = (UNIT, READER_SOCKET_UNIT, READER_UNIT, hostuids.SOCKET_UNIT, hostuids.ANSWER_UNIT)
DROP_INS: Final = tuple(UNITS / f"{name}.d" for name in ALL_UNITS)


def take_out(*, dry_run: bool, purge: bool, kill: bool) -> Iterator[Step]:
    """End the service and remove it. Virtual machines run on, and the state stays; with `purge` nothing does.

    Raises `Refused`: also where virtual machines run that a purge would end, unless `kill` says that it may.
    """
    require_systemd("remove", dry_run=dry_run)
    if purge and not kill and (running := processes_of(VMS)):
        raise Refused(
            Reason.CONFLICT,
            f"host remove --purge: {len(running)} of its virtual machines run, and their disks would be deleted",
            remedy="aetherscale vm list; stop them first, or end them with --purge --kill",
        )
    if purge and (found := Bridges().recorded()) is not None:
        raise Refused(
            Reason.CONFLICT,
            f"host remove --purge: {found.bridge} has the place of {found.device}, and would be gone at the next boot",
            remedy=f"{UNDO}; then again",
        )
    yield from steps((*_service(), *(_everything() if purge else ())), dry_run=dry_run)


def _service() -> Iterator[Part]:
    for name, what in ((READER_SOCKET_UNIT, "its reader"), (UNIT, "the service")):
        file = UNITS / name
        yield Part(f"{what} is stopped", lambda file=file: not file.exists(), lambda name=name: _stop(name))  # type: ignore[misc]
    for name in (UNIT, READER_SOCKET_UNIT, READER_UNIT):
        yield _without(UNITS / name, reload=True)
    yield hostnetworks.removal()
    yield Part("the mapper of uids is gone", lambda: not hostuids.is_any_there(), hostuids.remove)
    yield Part(f"{PROGRAM} is gone", lambda: not PROGRAM.is_symlink(), PROGRAM.unlink)
    yield Part(f"{COMPLETION} is gone", lambda: not COMPLETION.exists(), _remove_completion)


def _everything() -> Iterator[Part]:
    for drop_in in DROP_INS:
        if drop_in.exists():
            yield _without(drop_in, reload=True)
    yield Part("its virtual machines have ended", lambda: not processes_of(VMS), _end_vms)
    yield Part("its virtual networks are gone", lambda: not _has_networks(), _remove_networks)
    yield Part("its user's manager has ended", _has_no_manager, _end_manager)
    yield Part(f"{STATE_DIR} is gone: disks, images and the log", lambda: not STATE_DIR.exists(), _remove_state)
    yield _without(CONFIG.parent)
    yield _without(RUN_DIR)
    yield _without(READER)
    yield Part(f"{SLICE} is gone", lambda: says("is-active", SLICE) != "active", _end_slice)
    yield Part(f"the user {USER} is gone", lambda: service.uid() is None, lambda: run("userdel", USER))
    yield Part(f"the group {GROUP} is gone", lambda: group(GROUP) is None, lambda: run("groupdel", GROUP))


def _remove_completion() -> None:
    COMPLETION.unlink()
    for directory in (COMPLETION.parent, COMPLETION.parents[1]):
        with suppress(OSError):  # others have theirs in it
            directory.rmdir()


def _without(path: Path, *, reload: bool = False) -> Part:
    def do() -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        if reload:
            run("systemctl", "daemon-reload")

    return Part(f"{path} is gone", lambda: not os.path.lexists(path), do)


def _stop(name: str) -> None:
    run("systemctl", "disable", "--quiet", "--now", name)
    if name == READER_SOCKET_UNIT:
        run("systemctl", "stop", READER_UNIT.replace("@.", "@*."))


def _end_vms() -> None:
    """Kill what runs in the directories of its virtual machines. Raises `Refused` where that does not end."""
    for vm_id, pid in processes_of(VMS):
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if (vm_id, pid) in processes_of(VMS):  # else the number is somebody else's by now
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _require_end(pidfd, pid)
            finally:
                os.close(pidfd)


def _has_networks() -> bool:
    """Whether anything of networks is on the host, and a log that says whose it is."""
    try:
        return (STATE_DIR / LOG_NAME).exists() and bool(removal.present())
    except (OSError, NftError):  # without nftables there are none
        return False


def _remove_networks() -> None:
    """Take away the devices, rules and resolvers of the service's node, whose name its log knows. Raises `Refused`."""
    try:
        if (node := owner_of(STATE_DIR / LOG_NAME)) is not None:
            asyncio.run(removal.remove_all(node, STATE_DIR))
    except StoreError as damaged:
        raise Refused(
            Reason.INTERNAL,
            f"host remove: the log does not say whose networks there are: {damaged}",
            remedy=f"delete the devices by hand, then {STATE_DIR / LOG_NAME}: ip -br link",
        ) from damaged
    except Fault as fault:
        raise Refused(
            Reason.INTERNAL, f"host remove: networks could not be removed: {fault.reason}", remedy=fault.remedy
        ) from fault


def _require_end(pidfd: int, pid: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(DEATH_S * 1000):
        raise Refused(
            Reason.DEADLINE,
            f"host remove: process {pid} does not end within {DEATH_S:g} s",
            remedy="dmesg; mostly a disk hangs",
        )


def _has_no_manager() -> bool:
    uid = service.uid()
    return not LINGERING.exists() and (uid is None or says("is-active", f"user@{uid}.service") != "active")


def _end_manager() -> None:
    for forget in ("disable-linger", "terminate-user"):  # logind may not know the user any more
        ended("loginctl", forget, USER)
    LINGERING.unlink(missing_ok=True)
    if (uid := service.uid()) is not None:
        run("systemctl", "stop", f"user@{uid}.service", f"user-runtime-dir@{uid}.service", f"user-{uid}.slice")


def _end_slice() -> None:
    run("systemctl", "stop", SLICE)
    ended("systemctl", "reset-failed", "aetherscale*")


def _remove_state() -> None:
    """All that is in it, and the directory itself where it is no file system of its own."""
    if not os.path.ismount(STATE_DIR):
        shutil.rmtree(STATE_DIR)
        return
    for path in STATE_DIR.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
