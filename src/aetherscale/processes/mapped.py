"""Run as a program between `unshare --user` and `setpriv`: has the new user namespace given its uid, then goes on.

    python3 -I -S mapped.py SOCKET UID COMMAND…

It asks the mapper on SOCKET to map UID into the namespace that it is in, and becomes COMMAND. Exit status 1 and a line
on stderr where that is refused. Nothing of aetherscale is imported: it runs once for each start of a VM.
"""

from __future__ import annotations

import os
import socket
import sys

PATIENCE_S = 20.0


def main(address: str, uid: str, *command: str) -> str:
    """Ask, and become the command; the refusal, if there is one."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(address)
            connection.sendall(f"{uid}\n".encode())
            answer = connection.makefile().readline().strip()
    except OSError as error:
        return f"aetherscale: {address} gives this VM no uid of its own: {error}"
    if answer != "ok":
        return f"aetherscale: {address} gives this VM no uid of its own: {answer or 'it did not answer'}"
    os.execv(command[0], command)  # noqa: S606 - there is nothing for a shell to read in it


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
