"""The names of a component, for code that refers to it without loading it."""

from __future__ import annotations

from typing import NamedTuple


class Identity(NamedTuple):
    """The names of a component and its aggregates."""

    component: str
    """In subjects and in the actor `aether:<component>`: "compute"."""
    kind: str
    """Of its aggregates, in streams, ids, `obj` subjects and the command line: "vm"."""
    plural: str
    """In the task `list-<plural>`: "vms"."""
    noun: str
    """In sentences: "VM"."""
    reference: str
    """The field by which the options of tasks refer to an aggregate: "vm-id"."""
    about: str
    """One line, for `nats micro` and the docs."""
    help: str
    """One line, for `aetherscale --help`."""

    @property
    def list_task(self) -> str:
        """The task that lists all aggregates of a tenant: `list-vms`."""
        return f"list-{self.plural}"

    @property
    def show_task(self) -> str:
        """The task that shows one of them: `vm-info`."""
        return f"{self.kind}-info"
