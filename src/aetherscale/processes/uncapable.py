"""Run as a program after `setpriv --no-new-privs`: gives up every capability, then becomes COMMAND.

    python3 -I -S uncapable.py COMMAND…

For root that may not empty its bounding set, since CAP_SETPCAP is missing. An exec gives root all that the bounding set
has, but with no_new_privs nothing that it did not have before: so having none before is enough (capabilities(7),
prctl(2)). `setpriv` gives up none of those that it has. Nothing of aetherscale is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys

VERSION_3 = 0x20080522
WORDS = 6
"""Effective, permitted and inheritable, of 64 bits: capset(2)."""


def main(*command: str) -> str:
    """Give them up, and become the command; why not, otherwise."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, none = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * WORDS)()
    if libc.capset(header, none) != 0:
        return f"aetherscale: this process does not let its capabilities go: {os.strerror(ctypes.get_errno())}"
    os.execv(command[0], command)  # noqa: S606 - there is nothing for a shell to read in it


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
