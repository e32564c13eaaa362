"""What a guest of a simulated host does, as a test says it."""

from __future__ import annotations

from msgspec import Struct


class Behaviour(Struct, frozen=True):
    """The behaviour of a guest. None: never."""

    start_s: float = 0.0
    """From exec until QEMU says `running`."""
    start_failure: str = ""
    """QEMU ends at its start, and this is the end of its log."""
    ready_after_s: float | None = 0.0
    shutdown_s: float | None = 0.0
    """How long it takes to shut down after it was asked; None: it ignores ACPI."""
    power_off_after_s: float | None = None
    panic_after_s: float | None = None
    crash_after_s: float | None = None
    """When QEMU itself dies of SIGSEGV."""
    has_agent: bool = True
    has_terminals: bool = True
    """Whether the guest has what a program on a terminal, or with streams, needs."""
    unplug_s: float | None = 0.0
    """How long it takes to let go of a card; None: it has no driver for that."""
    is_unresponsive: bool = False
    """QMP hangs: whatever needs it times out, and only SIGKILL helps."""
    init_s: float | None = 0.0
    """How long its init script runs, from when the guest is ready; None: it hangs."""
    init_status: int = 0
    init_reboots: bool = False
    """Whether the script reboots the guest instead of coming to its end."""
    init_told: int = 1
    """How many times the guest tells the end: one that lies tells it more than once."""
