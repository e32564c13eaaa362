"""What the scripts of programs with ports have in common, and the meanings of their failures. POSIX sh."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.compute.exitstatus import EXIT_STATUS, NOT_EXECUTABLE, NOT_FOUND
from aetherscale.kernel.errors import Reason, Refused

PORTS: Final = r"""
port_is_there() {
    for at in /sys/class/virtio-ports/*; do
        read -r name < "$at/name" && [ "$name" = "$1" ] || continue
        port=/dev/${at##*/}
        [ -c "$port" ] && return
    done 2> /dev/null
    return 1
}
want_port() {
    tries=0
    until port_is_there "$1"; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || { echo no-port >&2; exit 1; }
        sleep 0.1 2> /dev/null || sleep 1
    done
}
want_program() {
    case $1 in
    */*)
        [ -e "$1" ] || { echo no-program >&2; exit 1; }
        [ ! -d "$1" ] && [ -x "$1" ] || { echo not-executable >&2; exit 1; }
        ;;
    *) command -v "$1" > /dev/null || { echo no-program >&2; exit 1; } ;;
    esac
}
"""
"""`want_port NAME` waits for a port, whose device is in `port` then. `want_program NAME` ends the script where that
program cannot be run.
"""

NO_PORT: Final = ("its kernel has not found the port", "it needs the module virtio_console")
"""What is wrong with a guest that sees no port, and what it needs."""


def not_run(word: str, program: str) -> Refused | None:
    """Why the program cannot be run, from the word of `want_program`; None for another word."""
    match word:
        case "no-program":
            what, status = "no such program", NOT_FOUND
        case "not-executable":
            what, status = "it is a directory, or not executable", NOT_EXECUTABLE
        case _:
            return None
    return Refused(
        Reason.BAD_REQUEST,
        f"the guest could not run {program!r}: {what}",
        field="command",
        details={EXIT_STATUS: status},
    )
