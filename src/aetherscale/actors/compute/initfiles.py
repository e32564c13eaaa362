"""Where the node keeps the init scripts of VMs: `<state-dir>/init/<vm-id>`, 0600 in a directory that is the node's.

It is there before the log has its VM, and until its end is on record. A VM's user-data for cloud-init is beside it
until the VM is deleted: `<vm-id>.user-data`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from aetherscale import statedir
from aetherscale.actors.compute.freshscripts import FreshScripts, Kept
from aetherscale.actors.compute.model.state import Vm
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import ID_PATTERN
from aetherscale.runtime.threads import to_the_end

log = logging.getLogger(__name__)

DIRECTORY: Final = "init"
USER_DATA: Final = ".user-data"


class InitFiles:
    """`InitScripts` on files."""

    def __init__(self, state_dir: Path, elapsed_s: Callable[[], float] = time.monotonic) -> None:
        self._root = state_dir / DIRECTORY
        self._fresh = FreshScripts(elapsed_s)

    async def keep(self, vm_id: str, script: bytes) -> None:
        """As in `InitScripts`."""
        await self._keep(vm_id, vm_id, script, "init script")

    async def keep_user_data(self, vm_id: str, data: bytes) -> None:
        """As in `InitScripts`."""
        await self._keep(vm_id, f"{vm_id}{USER_DATA}", data, "user-data")

    async def _keep(self, vm_id: str, name: str, content: bytes, what: str) -> None:
        self._fresh.add(vm_id)
        try:
            await to_the_end(self._write, name, content)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise Refused(
                Reason.STORAGE_FULL if full else Reason.UNAVAILABLE,
                f"the {what} cannot be kept in {self._root}, so nothing was done: {error.strerror or error}",
                retryable=True,
                remedy=f"make room there: df -h {self._root.parent}" if full else f"ls -ld {self._root}",
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        statedir.make(self._root)
        statedir.write_file(self._root / name, content)
        self._sync()

    def read(self, vm_id: str) -> bytes | None:
        """The script of a VM; None where there is none. Raises `OSError`."""
        return self._read(vm_id)

    def read_user_data(self, vm_id: str) -> bytes | None:
        """The user-data of a VM; None where there is none. Raises `OSError`."""
        return self._read(f"{vm_id}{USER_DATA}")

    def place_of_user_data(self, vm_id: str) -> Path:
        """Where the user-data of a VM is, if it has any."""
        return self._root / f"{vm_id}{USER_DATA}"

    def _read(self, name: str) -> bytes | None:
        try:
            with os.fdopen(statedir.open_file(self._root / name, os.O_RDONLY), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def remove(self, vm_id: str) -> None:
        """Ensure that there is no script of the VM, also after a power cut. Raises `OSError`."""
        self._fresh.forget(vm_id)
        self._remove(vm_id)

    def remove_all(self, vm_id: str) -> None:
        """The same of its user-data too."""
        self.remove(vm_id)
        self._remove(f"{vm_id}{USER_DATA}")

    def _remove(self, name: str) -> None:
        path = self._root / name
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        self._sync()

    def _sync(self) -> None:
        with statedir.opened(self._root) as directory:
            os.fsync(directory)

    def remove_unknown(self, expected: Mapping[str, Vm]) -> None:
        """Remove what is of no VM that needs it, and what a write has left that did not come to its end."""
        try:
            found = sorted(os.listdir(self._root))
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("%s cannot be looked through for init scripts of no VM: %s", self._root, error)
            return
        for name in found:
            of = name.removesuffix(".new")
            what: Kept = "user-data" if of.endswith(USER_DATA) else "script"
            vm_id = of.removesuffix(USER_DATA)
            if re.fullmatch(ID_PATTERN, vm_id) and self._fresh.is_of_no_use(vm_id, expected, what):
                try:
                    (self._root / name).unlink(missing_ok=True)
                    self._fresh.forget(vm_id)
                except OSError as error:
                    log.warning("the init script of no VM %s cannot be removed: %s", self._root / name, error)
