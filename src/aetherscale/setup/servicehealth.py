"""The findings of `doctor` about this host's service, as its own user."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from aetherscale import service
from aetherscale.kernel.findings import Finding
from aetherscale.settings import Settings

CALL_S: Final = 20.0
"""How long systemd may take to answer."""


def findings(settings: Settings) -> Iterator[Finding]:
    """Whether the node that is asked about is the service's, how that is, and whether it is what is installed."""
    if not service.is_asked_about(settings.state_dir):
        return
    shown = _shown("LoadState", "ActiveState", "UnitFileState", "StatusText")
    if shown["LoadState"] != "loaded":
        yield Finding("service", "error", f"{service.UNIT} is not installed", "aetherscale host setup")
    elif shown["ActiveState"] != "active":
        yield Finding("service", "error", f"{service.UNIT} is {shown['ActiveState'] or 'unknown'}", service.START)
    elif shown["StatusText"] not in ("", service.build()):
        found = f"runs {shown['StatusText']}, and installed is {service.build()}"
        yield Finding("service", "warning", found, "aetherscale host setup, which restarts it; virtual machines run on")
    elif shown["UnitFileState"] != "enabled":
        yield Finding("service", "warning", "runs, and is not started at boot", "systemctl enable aetherscale")
    else:
        yield Finding("service", "ok", f"{service.UNIT} runs as {service.USER}, and at each boot; seen as that user")


def _shown(*names: str) -> dict[str, str]:
    """Properties of the unit; those that systemd does not report are empty."""
    shown = dict.fromkeys(names, "")
    command = ("systemctl", "show", "-p", ",".join(names), service.UNIT)
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_S, check=True)
        shown |= {name: value for name, _, value in (line.partition("=") for line in done.stdout.splitlines())}
    return shown
