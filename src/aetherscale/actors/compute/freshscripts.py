"""Which of the init scripts that a host keeps are of no use: the same for the real host and the simulated one.

A script is there before the log has its VM. So one that no VM is known of may be of a request that is being decided
just now, by this process; one that an earlier process was given is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from aetherscale.actors.compute.model.state import Vm

UNKNOWN_S: Final = 600.0
"""How long a script may be of no VM that the log has, while this process lives: no request takes so long."""


Kept = Literal["script", "user-data"]
"""What is kept of a VM: its init script, or its user-data for cloud-init."""


class FreshScripts:
    """The scripts that this process was given and that no event is known of yet."""

    def __init__(self, elapsed_s: Callable[[], float]) -> None:
        self._elapsed_s = elapsed_s
        self._since_s: dict[str, float] = {}

    def add(self, vm_id: str) -> None:
        """This process is given the script of a VM."""
        self._since_s[vm_id] = self._elapsed_s()

    def forget(self, vm_id: str) -> None:
        """It has been removed."""
        self._since_s.pop(vm_id, None)

    def is_of_no_use(self, vm_id: str, expected: Mapping[str, Vm], what: Kept = "script") -> bool:
        """Whether what the host has can be removed. The script of a VM whose end of it is told has an effect."""
        vm = expected.get(vm_id)
        if vm is not None:
            self.forget(vm_id)
            sha256 = vm.init.sha256 if what == "script" else vm.spec.cloud_init_sha256
            return vm.phase == "deleted" or not sha256
        since_s = self._since_s.get(vm_id)
        return since_s is None or self._elapsed_s() - since_s > UNKNOWN_S
