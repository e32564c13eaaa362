"""The part of `host setup` that gives each VM a uid of its own: a socket, and a service that answers on it once.

See `uidmapper.py` for what it may do, and docs/decisions/0052-a-uid-for-each-vm.md for why it is so little.
"""

from __future__ import annotations

import os
from importlib import resources
from typing import Final

from aetherscale.processes import users
from aetherscale.service import GROUP, STATE_DIR, UNITS, USER
from aetherscale.setup.hostwork import has, run, says, write

SOCKET_UNIT: Final = "aetherscale-uids.socket"
ANSWER_UNIT: Final = "aetherscale-uids@.service"


def contents(python: str) -> dict[str, str]:
    """Each unit by its name, for this installation."""
    texts = {
        name: resources.files("aetherscale.setup").joinpath(name).read_text() for name in (SOCKET_UNIT, ANSWER_UNIT)
    }
    return {
        name: text.format(python=python, user=USER, group=GROUP, state_dir=STATE_DIR, mapper=users.MAPPER)
        for name, text in texts.items()
    }


def are_there(wanted: dict[str, str]) -> bool:
    """Whether the units are as they are wanted, and the socket listens, also after the next boot."""
    return (
        all(has(UNITS / name, text) for name, text in wanted.items())
        and users.MAPPER.is_socket()
        and says("is-active", SOCKET_UNIT) == "active"
        and says("is-enabled", SOCKET_UNIT) == "enabled"
    )


def make(wanted: dict[str, str]) -> None:
    """Write the units and listen, now and after each boot. Raises `Refused`, `OSError`."""
    for name, text in wanted.items():
        write(UNITS / name, text)
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--quiet", SOCKET_UNIT)
    run("systemctl", "restart", SOCKET_UNIT)


def is_any_there() -> bool:
    """Whether anything of it is left on this host."""
    return any(os.path.lexists(place) for place in (UNITS / SOCKET_UNIT, UNITS / ANSWER_UNIT, users.MAPPER))


def remove() -> None:
    """Take it out again. What runs keeps its uid; a VM that starts later gets none. Raises `Refused`, `OSError`."""
    if (UNITS / SOCKET_UNIT).exists():
        run("systemctl", "disable", "--quiet", "--now", SOCKET_UNIT)
    run("systemctl", "stop", ANSWER_UNIT.replace("@.", "@*."))
    for place in (UNITS / SOCKET_UNIT, UNITS / ANSWER_UNIT, users.MAPPER):
        place.unlink(missing_ok=True)
    run("systemctl", "daemon-reload")
