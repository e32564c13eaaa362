"""The script that a guest's shell runs for a program with pipes, and the meanings of its failures. POSIX sh."""

from __future__ import annotations

from typing import Final

from aetherscale.actors.compute.qemu.portscripts import NO_PORT, PORTS, not_run
from aetherscale.kernel.errors import Reason, Refused

START: Final = (
    PORTS
    + r"""
base=$1 token=$2 input=$3 inner=$4
shift 4
command -v setsid > /dev/null || { echo no-setsid >&2; exit 1; }
want_program "$1"
mark() {
    until printf '\036%s-%s\036' "$token" "$status" >&"$1"; do
        port_is_there "$base.out" || exit
        sleep 0.1 || sleep 1
    done 2> /dev/null
}
want_port "$base.ctl"
exec 6<> "$port"
want_port "$base.out"
exec 3<> "$port"
want_port "$base.err"
exec 4<> "$port"
if [ "$input" = yes ]; then
    want_port "$base.in"
    exec 5< "$port"
else
    exec 5< /dev/null
fi
(exec setsid sh -c "$inner" "$token" "$@" <&5 >&3 2>&4)
status=$?
exec 5<&-
mark 4
mark 3
"""
)
"""Run by the agent, with the beginning of the ports' names, the token, whether there is input, `INNER`, and the program
with its arguments. It tells the program's end by a mark on each of the two outputs, behind all that came before. A
program may have made these ports non-blocking, for all who have them: so a mark that was not taken is written again.
"""

INNER: Final = r"""
printf '\036%s+%s\036' "$0" "$$" >&6
( (
    trap '' HUP INT QUIT TERM PIPE USR1 USR2
    while read -r word; do
        kill -s "$word" -- "-$$"
    done
    kill -0 "$$" && kill -s HUP -- "-$$"
) <&6 > /dev/null 2>&1 3>&- 4>&- 5>&- 6>&- & )
case $1 in
*=*) ;;
*) command -v env > /dev/null && set -- env -- "$@" ;;
esac
exec "$@" 3>&- 4>&- 5>&- 6>&-
"""
"""Becomes the program, which leads a session of its own, after it has told its pid.

Beside it waits a shell for names of signals, on a port that the program has not. Once that port is gone, or nobody is
at its other end, it hangs up (SIGHUP) on a program that has not ended: neither the agent nor a node is needed. It is no
child of the program, which may wait for all of its own.

What cannot be executed after all, as a script whose interpreter is not there, is told by `env`, which says what was
tried; a shell would name the line of this script.
"""


def no_shell(refused: Refused) -> Refused:
    """The reasons where the agent could not even start a shell."""
    return Refused(
        Reason.NOT_IMPLEMENTED,
        f"a program cannot have pipes in this guest: {refused.message}",
        remedy="the guest needs Linux and /bin/sh; `exec-vm` needs the guest agent alone",
    )


def refusal(word: str, program: str) -> Refused:
    """Why it never began, from what `START` has said; retryable where that is none of its words."""
    if (why := not_run(word, program)) is not None:
        return why
    if word == "no-setsid":
        return Refused(
            Reason.NOT_IMPLEMENTED,
            "a program cannot have pipes in this guest: it has no `setsid`",
            remedy="install it in the guest (util-linux); `exec-vm` needs the guest agent alone",
        )
    if word == "no-port":
        return Refused(
            Reason.NOT_IMPLEMENTED, f"a program cannot have pipes in this guest: {NO_PORT[0]}", remedy=NO_PORT[1]
        )
    return Refused(Reason.UNAVAILABLE, f"{program!r} has not begun in the guest: {word[-500:]}", retryable=True)
