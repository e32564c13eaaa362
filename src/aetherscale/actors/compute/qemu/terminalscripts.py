"""The scripts that a guest's shell runs for a program on a terminal, and the meanings of their failures. POSIX sh."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.compute.qemu.portscripts import NO_PORT, PORTS, not_run
from aetherscale.kernel.errors import Reason, Refused

START: Final = (
    PORTS
    + r"""
want_port "$1"
script --version < /dev/null 2> /dev/null | grep -q util-linux || { echo no-script >&2; exit 1; }
command -v stty > /dev/null || { echo no-stty >&2; exit 1; }
want_program "$3"
exec 3<> "$port"
export TERM="$5" SHELL=/bin/sh
sh -c "$6" "/sys/class/virtio-ports/${port##*/}/name" "$1" "$2" "$4" <&3 >&3 3>&-
printf '\036%s-%s\036' "$4" "$?" >&3
"""
)
"""Run by the agent, with the port's name, what runs on the terminal, the program, the token, TERM, and `WATCHED`."""

WATCHED: Final = r"""
(
    {
        while sleep 1; read -r name < "$0" && [ "$name" = "$1" ]; do :; done
        tr '\0' ' ' < "/proc/$$/cmdline" | grep -qF "$3" && kill -9 "$$"
    } < /dev/null > /dev/null 2>&1 &
)
exec script -qefc "$2" /dev/null
"""
"""Becomes `script`, and ends it once the port is gone; the kernel then hangs up the terminal that `script` has made.

The watcher is not a child of `script`, since `script` may wait for all of its own. Neither the agent nor a node is
needed.
"""

ON_TERMINAL: Final = (
    r"stty sane; stty iutf8 2> /dev/null; stty {size}; printf '\036%s+%s\036' {token} $(tty); exec env -- "
)
RESIZE: Final = 'stty rows "$1" cols "$2" < "$0"'

_LACKS: Final = {
    "no-script": ("the guest has no `script` of util-linux", "bsdutils on Debian, util-linux-script on Fedora"),
    "no-stty": ("the guest has no `stty`", "coreutils"),
}


def no_shell(refused: Refused) -> Refused:
    """The reasons where the agent could not even start a shell."""
    return Refused(
        Reason.NOT_IMPLEMENTED,
        f"a program cannot have a terminal in this guest: {refused.message}",
        remedy="the guest needs Linux and /bin/sh; a program may run without a terminal there (-t)",
    )


def refusal(word: str, program: str) -> Refused:
    """Why it never began, from what `START` has said; retryable where that is none of its words."""
    if (why := not_run(word, program)) is not None:
        return why
    if word in _LACKS:
        what, package = _LACKS[word]
        hint = f"install it in the guest ({package}); a program runs without a terminal (-t)"
        return Refused(Reason.NOT_IMPLEMENTED, f"a program cannot have a terminal: {what}", remedy=hint)
    if word == "no-port":
        what, hint = NO_PORT
        return Refused(Reason.NOT_IMPLEMENTED, f"a program cannot have a terminal in this guest: {what}", remedy=hint)
    return Refused(
        Reason.UNAVAILABLE, f"{program!r} has not got a terminal in the guest: {word[-500:]}", retryable=True
    )
