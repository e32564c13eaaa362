"""The scripts that a guest's shell runs for `vm copy`, and their answers. POSIX sh.

A file is written beside its place, under a name that has the digest of its content, so that a partial one is only ever
gone on with by a copy of the same content; it comes to its place in one step, once it is whole.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from aetherscale.gateways.cli.copypaths import quoted, shown
from aetherscale.gateways.cli.failures import Failure, bad_usage

BLOCK_BYTES: Final = 64 * 1024
"""A partial file is gone on with at a multiple of this."""
BUSY: Final = 91
"""The exit status of a copy to a partial file that another one is writing."""
NO_ROOM: Final = 92
"""The exit status of a copy whose target is full."""

LOOK_AT_TARGET: Final = r"""
where=at
if [ -d "$1" ]; then
    where=in
    set -- "${1%/}/$2" "$2" "$3"
fi
case $1 in */) echo no-name; exit ;; esac
directory=${1%/*}
[ -d "$directory/" ] || { echo no-directory; exit; }
if [ -h "$1" ]; then kind=link
elif [ -d "$1" ]; then kind=directory
elif [ -f "$1" ]; then kind=file
elif [ -e "$1" ]; then kind=other
else kind=nothing
fi
part=$directory/.${1##*/}.$3.part
size=0
if [ -f "$part" ] && [ ! -h "$part" ]; then
    size=$(stat -c %s "$part" 2> /dev/null) || size=$(wc -c < "$part")
fi
echo "$where $kind" $size
"""
"""With the path, the name of the file here, and its digest."""

PUT: Final = r"""
umask 077
[ ! -h "$1" ] || { echo "$1 is a symbolic link" >&2; exit 1; }
exec 9>> "$1" || exit 1
if command -v flock > /dev/null; then
    flock -n 9 || exit 91
fi
said=$(LC_ALL=C dd of="$1" bs=65536 seek="$2" conv=notrunc,fsync 2>&1) && exit
case $said in
*"No space left"* | *"quota exceeded"*)
    rm -f -- "$1"
    exit 92
    ;;
esac
echo "$said" >&2
exit 1
"""
"""With the partial file, and the blocks that it has; its stdin is the rest. A target that is full does not stay so: the
partial file is removed.
"""

FINISH: Final = r"""
[ -f "$1" ] || { echo gone; exit; }
if [ "$5" != - ]; then
    found=$(sha256sum < "$1") || { echo no-sha256sum; exit; }
    [ "${found%% *}" = "$5" ] || { rm -f -- "$1"; echo damaged; exit; }
fi
chmod "$3" "$1" || exit 1
if [ "$4" = yes ]; then
    [ ! -d "$2" ] || [ -h "$2" ] || { echo exists; exit; }
    mv -f -- "$1" "$2" || exit 1
elif ln -- "$1" "$2" 2> /dev/null; then
    rm -f -- "$1"
elif [ -e "$2" ] || [ -h "$2" ]; then
    echo exists
    exit
else
    mv -- "$1" "$2" || exit 1
fi
echo done
"""
"""With the partial file, its place, the mode, whether to replace what is there, and the digest (- for none)."""

LOOK_AT_SOURCE: Final = r"""
if [ -d "$1" ]; then echo directory
elif [ -f "$1" ]; then
    case $(readlink -f -- "$1") in
    /proc/* | /sys/*)
        echo "unsized $(stat -L -c %a "$1")"
        exit
        ;;
    esac
    what=$(stat -L -c '%s %a' "$1") || exit 1
    sum=$(sha256sum < "$1") || sum=-
    echo "file $what ${sum%% *}"
elif [ -e "$1" ]; then echo other
elif [ -h "$1" ]; then echo dangling
else echo missing
fi
"""
"""With the path."""

GET: Final = r'exec dd if="$1" bs=65536 skip="$2" 2> /dev/null'
"""With the path, and the blocks to leave out."""


class Target(NamedTuple):
    """What there is where a file is to come."""

    is_inside: bool
    """Whether the path is a directory, in which it gets the name that it has here."""
    kind: str
    part_bytes: int


class Source(NamedTuple):
    """A regular file in a guest."""

    size_bytes: int
    mode: int
    sha256: str
    """In hex; "" where the guest cannot tell it."""
    is_unsized: bool = False
    """Whether what it has is made as it is read, like files of /proc and /sys."""


def target_of(said: str, vm: str, path: str) -> Target:
    """The answer to `LOOK_AT_TARGET`. Raises `Failure`."""
    if said == "no-directory":
        raise Failure(
            404,
            f"vm copy: the guest has no directory for {shown(path)}",
            hint=f"aetherscale vm exec {vm} -- mkdir -p {quoted(path.rpartition('/')[0])}",
        )
    if said == "no-name":
        raise Failure(404, f"vm copy: {shown(path)} is no directory in the guest", hint="leave out the last /")
    found = re.fullmatch(r"(in|at) (link|directory|file|other|nothing) ([0-9]{1,15})", said)
    if found is None:
        raise nonsense(said)
    return Target(found[1] == "in", found[2], int(found[3]))


def source_of(said: str, vm: str, path: str) -> Source:
    """The answer to `LOOK_AT_SOURCE`. Raises `Failure`."""
    if said in ("missing", "dangling"):
        what = "a symbolic link to nothing" if said == "dangling" else "not there"
        raise Failure(404, f"vm copy: {shown(path)} is {what} in the guest")
    if said == "directory":
        raise bad_usage(
            f"vm copy: {shown(path)} is a directory in the guest, and one file is copied at a time",
            f"aetherscale vm exec {vm} -- tar c -C {quoted(path)} . | tar x",
        )
    if said == "other":
        what = f"vm copy: {shown(path)} is no regular file in the guest"
        raise bad_usage(what, f"aetherscale vm exec {vm} -- cat {quoted(path)}")
    if unsized := re.fullmatch(r"unsized ([0-7]{1,5})", said):
        return Source(0, int(unsized[1], 8) & 0o777, "", is_unsized=True)
    found = re.fullmatch(r"file ([0-9]{1,15}) ([0-7]{1,5}) ([0-9a-f]{64}|-)", said)
    if found is None:
        raise nonsense(said)
    return Source(int(found[1]), int(found[2], 8) & 0o777, found[3].removeprefix("-"))


def nonsense(said: str) -> Failure:
    """The failure of a guest whose answer is none."""
    return Failure(500, f"vm copy: the guest answered {said[:80]!r}, which is no answer of its shell")
