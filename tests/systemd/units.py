"""What systemd has of VMs."""

from __future__ import annotations

import subprocess


def units() -> list[str]:
    """The units of VMs."""
    listed = told("list-units", "--all", "--plain", "--no-legend", "aetherscale-vm-*")
    return [line.split()[0] for line in listed.splitlines()]


def told(*words: str) -> str:
    """What `systemctl` says."""
    return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=True).stdout


async def no_units() -> bool:
    """Whether there are none."""
    return units() == []
