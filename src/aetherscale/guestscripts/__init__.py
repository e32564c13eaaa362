"""Programs of guests with systemd that more than one way of the first boot needs: see docs/guests.md. Data alone.

`init-run` runs the init script once, and `init-report` tells the host how it has ended. They are a part of the images
that are built here, and are given to guests of others at their first boot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

DIRECTORY: Final = Path(__file__).parent
IN_GUEST: Final = "usr/lib/aetherscale"
"""Where images that are built here have them."""

Script = Literal["init-run", "init-report"]
SCRIPTS: Final[tuple[Script, ...]] = ("init-run", "init-report")


def script(name: Script) -> bytes:
    """The text of a program."""
    return (DIRECTORY / name).read_bytes()
