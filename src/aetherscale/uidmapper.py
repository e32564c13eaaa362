"""The only part of a host that was set up which may give away uids: one request, one answer, and it ends.

`aetherscale-uids.socket` starts it for each connection, as the node's own user with CAP_SETUID and CAP_SETGID. It takes
one line with the uid of a VM, and maps that uid, the gid of the same number and the group of /dev/kvm into the user
namespace of whoever asks. More it cannot be made to do: other numbers are refused here, and a namespace that belongs to
another user is refused by the kernel (user_namespaces(7)), whatever pid the asking process had or left.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from aetherscale.processes.users import is_a_vms

KVM: Final = Path("/dev/kvm")
PATIENCE_S: Final = 5.0
_CREDENTIALS: Final = struct.Struct("3i")
_REQUEST: Final = re.compile(rb"([1-9][0-9]{9})\n")


def main() -> int:
    """Serve the connection that is stdin."""
    with socket.socket(fileno=os.dup(0)) as connection:
        try:
            answer = answer_to(connection)
        except TimeoutError:
            answer = f"nothing was asked within {PATIENCE_S:g} s"
        except OSError as error:
            answer = f"the kernel refuses it: {error.strerror or error}"
        connection.sendall(f"{answer}\n".encode())
    return 0 if answer == "ok" else 1


def answer_to(connection: socket.socket) -> str:
    """Do what is asked: "ok", or why not. Raises `OSError` where the kernel does not let it."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(raw)
    if user != os.geteuid():
        return f"uid {user} is not the user of this service"
    connection.settimeout(PATIENCE_S)
    request = _REQUEST.fullmatch(connection.recv(64))
    if request is None or not is_a_vms(int(request[1])):
        return "that is not the uid of a VM"
    uid = int(request[1])
    # Whatever the numbers are outside, they are the same inside, so that both sides name a user alike.
    write_map(pid, "uid", [uid])
    write_map(pid, "gid", [uid, *kvm_group()])
    return "ok"


def kvm_group() -> list[int]:
    """The group of /dev/kvm, where this user is in it: a guest gets nothing that its node has not."""
    try:
        group = KVM.stat().st_gid
    except OSError:
        return []
    return [group] if group != 0 and group in os.getgroups() else []


def write_map(pid: int, kind: str, numbers: list[int]) -> None:
    """Map each number to itself. Raises `OSError`; a map can be written once."""
    text = "".join(f"{number} {number} 1\n" for number in numbers)
    descriptor = os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
    try:
        # The kernel takes a map in one write or not at all.
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
