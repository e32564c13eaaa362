"""The words of `vm copy`."""

from __future__ import annotations

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.grammar import Argument, Command, Option


def _copy(context: Context) -> None:
    """Copy one file."""
    # Here, since few commands need what it takes.
    from aetherscale.gateways.cli import vm_copy

    vm_copy.copy(context)


COPY = Command(
    "copy",
    "copy a file into a guest, or out of one",
    _copy,
    arguments=(
        Argument("SOURCE", "the file, or NAME:/path", completes="file"),
        Argument("TARGET", "where it comes to: NAME:/path, or a file or directory here", completes="file"),
    ),
    options=(Option("force", "replace a file that is there"),),
    examples=(
        "aetherscale vm copy notes.txt web:/root/",
        "aetherscale vm copy web:/etc/os-release .",
        "aetherscale vm copy --force notes.txt web:/root/notes.txt",
    ),
    details=(
        "The path in the guest begins with a slash. In a directory, the file keeps its name. Its permissions are kept, "
        "but for setuid, setgid and sticky; in the guest it belongs to root. Symbolic links are followed where a file "
        "is read, and replaced (--force) where one is written. One file is copied at a time: for directories, use tar "
        "with `vm exec`.\n\n"
        "A copy is whole or not there: its SHA-256 is compared before it comes to its place. Until then it is beside "
        "it, as .NAME.….part; the same command goes on where an interrupted one was. The guest needs its agent, sh, dd "
        "and setsid; no network."
    ),
)
