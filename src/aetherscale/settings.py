"""The settings of a node, read once and handed down. Flags stand over the environment over a file over defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import Struct

Accelerator = Literal["auto", "kvm", "tcg"]


class Settings(Struct, frozen=True):
    """What a node is told before it starts."""

    state_dir: Path
    node: str
    """The name of the node; default: the host's name, made into a valid one."""
    nats_url: str | None = None
    """An outside NATS server; None for one of our own on loopback."""
    accelerator: Accelerator = "auto"
    simulated: bool = False
    """Whether VMs are simulated: nothing on the host is touched but the state directory."""
