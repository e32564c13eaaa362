"""The work that the command line starts without knowing how it is done. The entry of the program hands it in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
    from pathlib import Path

    from aetherscale.kernel.findings import Finding
    from aetherscale.kernel.registry import Kind
    from aetherscale.settings import Settings


class Step(Struct, frozen=True):
    """One thing that makes a host what it is to be."""

    what: str
    status: Literal["done", "already", "to do"]


BridgeTask = Literal["set up", "confirm", "undo"]


class BridgeAsked(Struct, frozen=True):
    """A bridge that is to take the place of a device of the host."""

    device: str
    bridge: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    """Those of the host in place of the device's; a family that none is of is taken over as it is."""
    gateways: tuple[IPv4Address | IPv6Address, ...] = ()


class Ready(Protocol):
    """The report of a node that takes commands."""

    @property
    def node(self) -> str:
        """Its name."""
        ...

    @property
    def state_dir(self) -> Path:
        """Where its state is."""
        ...

    @property
    def nats_url(self) -> str:
        """The server that it uses, without credentials."""
        ...

    @property
    def connected(self) -> bool:
        """Whether that server could be reached."""
        ...

    @property
    def trouble(self) -> str:
        """Why it cannot be used, where that is so."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """How many objects it has, as a heartbeat counts them."""
        ...

    @property
    def head(self) -> int:
        """The position of the last event in its log."""
        ...

    @property
    def notes(self) -> Mapping[str, str]:
        """Notices for the operator, from its components."""
        ...

    @property
    def doors(self) -> Mapping[str, str]:
        """Where else it takes commands, in words, from the gateways inside it."""
        ...


class Program(Struct, frozen=True):
    """Every member is called only when it is needed, so that what stands behind it is imported only then."""

    version: str
    environ: Mapping[str, str]
    now_us: Callable[[], int]
    """The clock of the host."""
    new_token: Callable[[], str]
    """A random text that cannot be guessed: an idempotency key, the name of a session."""
    new_epoch: Callable[[], str]
    """The name of a new log."""
    kinds: Callable[[], tuple[Kind[Any], ...]]
    """The kinds of objects that a log can hold."""
    serve: Callable[[Settings, Callable[[Ready], None]], None]
    """Run a node until it is stopped, and report when it is ready. Raises `Refused`."""
    doctor: Callable[[Settings], tuple[Finding, ...]]
    """Everything that a node needs of its host, looked at."""
    look_into: Callable[[Path], Mapping[str, Any]]
    """What is in the file of an image, as callers see it. Raises OSError."""
    set_up: Callable[[bool, bool], Iterator[Step]]
    """Make this host one that runs a node as a service, or with the first True only say what that takes; with the
    second one also what virtual networks need. Raises `Refused`."""
    take_out: Callable[[bool, bool, bool], Iterator[Step]]
    """Remove that service, or with the first True only say what that takes; with the second one everything that it
    made, with the third one also where virtual machines run. Raises `Refused`."""
    bridge: Callable[[BridgeAsked | None, BridgeTask, bool], Iterator[Step]]
    """Set up a bridge on trial, which the first one says, confirm it, or undo it; with True only say what that takes.
    Raises `Refused`."""
    demo: Callable[[], int]
    """From nothing to a ready virtual machine and back; answers with the exit status."""
