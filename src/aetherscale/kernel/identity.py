"""The names of a component, for code that refers to it without loading it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Unit = Literal["", "MiB", "GiB", "bytes", "moment", "id", "addresses", "count"]
"""How the values of a column are meant; "" for words and plain numbers, `addresses` for a list of ports, `count` for a
list of which the length is shown.
"""


class Column(NamedTuple):
    """A column of the table that a terminal or a browser shows of many aggregates."""

    heading: str
    field: str
    """Of the view."""
    unit: Unit = ""
    is_name: bool = False
    """Whether it has names, which are never cut: they go on in the next line."""
    spare: int = 0
    """Where there is no room, columns are left out in this order, 1 before 2; 0 for one that is not left out."""
    otherwise: tuple[str, ...] = ()
    """The fields that stand in its place where it is null, the first one that is not."""
    shown: Literal["", "brief", "wide"] = ""
    """Whether it is only in the brief table of a terminal, or only in all others."""


NAME = Column("NAME", "name", is_name=True)
PHASE = Column("PHASE", "phase")
NODE = Column("NODE", "node", is_name=True)
"""Says nothing where all are on one node."""
SINCE = Column("SINCE", "since", "moment")
ID = Column("ID", "id", "id")


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
    columns: tuple[Column, ...] = (NAME, PHASE, NODE, SINCE, ID)
    """Of the table of many."""

    @property
    def one(self) -> str:
        """One of its aggregates, in a sentence: "a VM", "an image"."""
        return f"{'an' if self.noun[0] in 'aeio' else 'a'} {self.noun}"

    @property
    def list_task(self) -> str:
        """The task that lists all aggregates of a tenant: `list-vms`."""
        return f"list-{self.plural}"

    @property
    def show_task(self) -> str:
        """The task that shows one of them: `vm-info`."""
        return f"{self.kind}-info"
