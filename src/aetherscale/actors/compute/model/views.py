"""A VM as callers see it: the same object on NATS, in the command line and in a replay."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from aetherscale.actors.compute.model.effects import ProcessUser, ReadyChannel

Phase = Literal[
    "requested",
    "provisioning",
    "booting",
    "running",
    "ready",
    "paused",
    "stopping",
    "stopped",
    "failed",
    "deleted",
]
Requested = Literal["running", "stopped", "deleted"]
Observed = Literal["absent", "running", "paused", "exited"]


class FailureView(Struct, frozen=True, rename="kebab"):
    """Why a VM failed: in which phase, what happened, what to do, and the end of the log that shows it."""

    phase: str
    reason: str
    hint: str
    log_tail: str


class ExitView(Struct, frozen=True, rename="kebab"):
    """How the last run ended: `reason` is who or what ended it; code and signal where they are known."""

    reason: str
    exit_code: int | None
    signal: int | None
    detail: str


class VmView(Struct, frozen=True, rename="kebab"):
    """The view of a VM; see the contract in `docs/subjects.md`. `since` is when it entered its phase."""

    id: str
    name: str
    node: str
    phase: Phase
    requested: Requested
    observed: Observed
    since: str
    image: str
    cpus: int
    memory_mib: int
    disk_gib: int
    restart: str
    autostart: bool
    ports: list[dict[str, Any]]
    failure: FailureView | None
    revision: int
    labels: dict[str, str]
    accelerator: str | None
    isolation: Literal["kvm", "none"] | None
    """What stands between guest and host while it runs: `none` under TCG, for which QEMU promises no isolation, and
    where QEMU runs as root or as the node's own user, so that a guest which breaks out of it has all that the node has.
    """
    process_user: ProcessUser | None
    """Whose process QEMU is while it runs; null where the event of its boot does not say."""
    paused_reason: str | None
    restarts: int
    exit: ExitView | None
    ready_by: ReadyChannel
    """How its guest says that it is ready: `none` where its image has no way to, and `running` is all that can be."""
    requested_by: str | None
    """Whose command was carried out last: see the actors in `docs/nats.md`."""
