"""What a guest says of itself. None of it is trusted, and none of it is in an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct


class InterfaceAddress(Struct, frozen=True, rename="kebab"):
    """An address that a guest says it has."""

    interface: str
    ip: str


class GuestDisk(Struct, frozen=True, rename="kebab"):
    """A file system that a guest says it has mounted."""

    mount_point: str
    used_bytes: int
    total_bytes: int


AgentState = Literal["absent", "silent", "answers"]


class GuestFacts(Struct, frozen=True, rename="kebab"):
    """What a guest says of itself. It is the guest's word: it may be wrong, and is trusted for nothing. What it has not
    said is null.
    """

    agent: AgentState
    """Whether its agent is there, and whether it has answered all in time."""
    agent_version: str | None = None
    os: str | None = None
    kernel: str | None = None
    host_name: str | None = None
    addresses: Sequence[InterfaceAddress] | None = None
    load: Sequence[float] | None = None
    """The average number of processes that run or wait, of 1, 5 and 15 minutes."""
    disks: Sequence[GuestDisk] | None = None
