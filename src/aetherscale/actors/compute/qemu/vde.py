"""Ports on VDE switches: the node asks a switch for one, and QEMU inherits what the guest's frames cross.

    card ── dgram ══ a socket of ours ══ the switch's socket for this port ── vde_switch

The protocol is that of vde2, version 3 (`datasock.c`, `libvdeplug.c`). A request goes to the stream socket `ctl`, with
the address of the datagram socket that frames are to come to; the answer is the address that they are to go to. The
port is there for as long as the stream is open: QEMU inherits it too, and does nothing with it. So the port lives and
dies with QEMU, and QEMU itself needs no right to the switch. The address of ours is an abstract one (unix(7)), which
has no directory that a switch of another user would have to be let into.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aetherscale.actors.compute.model.switches import CONTROL
from aetherscale.actors.compute.ports import missing_switch, unusable_switch
from aetherscale.identifiers import new_id
from aetherscale.kernel.fault import Fault
from aetherscale.processes import users

ANSWER_S: Final = 5.0
"""How long a switch has to answer."""

_MAGIC: Final = 0xFEEDFACE
_VERSION: Final = 3
_NEW_PORT: Final = 0
_SUN_PATH: Final = 108
_ADDRESS: Final = struct.Struct(f"=H{_SUN_PATH}s")
_REQUEST: Final = struct.Struct(f"=III{_ADDRESS.size}s")

_NO_SWITCH: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENOTSOCK)


@dataclass(frozen=True, slots=True)
class Plug:
    """A port of a switch, as long as its descriptors are open, here or where they were inherited."""

    frames: socket.socket
    """Frames go and come here, a datagram each."""
    control: socket.socket
    """The switch takes the port away when this is closed everywhere."""

    def filenos(self) -> tuple[int, int]:
        """Their descriptors."""
        return self.frames.fileno(), self.control.fileno()

    def close(self) -> None:
        """Let go of it."""
        self.frames.close()
        self.control.close()


def require(path: str) -> None:
    """Raises `Fault` where no VDE switch at this path would take a request of this node."""
    _connected(path).close()


async def plug_in(path: str, vm_id: str) -> Plug:
    """A new port of the switch at this path, which the caller closes. Raises `Fault`."""
    with ExitStack() as opened:
        control = opened.enter_context(_connected(path))
        frames = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        # The switch takes an address to be as long as the structure, whatever is in it.
        own = f"\0aetherscale-{new_id()}".encode().ljust(_SUN_PATH, b"-")
        try:
            frames.bind(own)
            peer = await _asked(control, own, f"VM {vm_id}".encode())
            frames.connect(peer)
            _require_of_switch(frames, path)
        except (OSError, _NoAnswerError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise unusable_switch(path, f"it gave the VM no port: {why}") from error
        opened.pop_all()
        return Plug(frames, control)


class _NoAnswerError(Exception):
    """What the switch did instead of answering."""


async def _asked(control: socket.socket, own: bytes, told: bytes) -> bytes:
    """The path that frames are to go to. Raises `_NoAnswerError`, `OSError`."""
    loop = asyncio.get_running_loop()
    request = _REQUEST.pack(_MAGIC, _VERSION, _NEW_PORT, _ADDRESS.pack(socket.AF_UNIX, own))
    answer = b""
    try:
        async with asyncio.timeout(ANSWER_S):
            await loop.sock_sendall(control, request + told + b"\0")
            while len(answer) < _ADDRESS.size:
                piece = await loop.sock_recv(control, _ADDRESS.size - len(answer))
                if not piece:
                    raise _NoAnswerError("it closed the connection, as no VDE switch does")
                answer += piece
    except TimeoutError:
        # vde_switch is silent where it has no port left.
        silent = f"it did not answer within {ANSWER_S:g} s, as one does that has none left (vde_switch -numports)"
        raise _NoAnswerError(silent) from None
    family, path = _ADDRESS.unpack(answer)
    path = path.partition(b"\0")[0]
    if family != socket.AF_UNIX or not path.startswith(b"/"):
        raise _NoAnswerError("it did not answer as a VDE switch does")
    return bytes(path)


def _require_of_switch(frames: socket.socket, path: str) -> None:
    """Raises `_NoAnswerError` where frames would go to a socket that is none of the switch's: it may be anybody's, and
    could name one that the host's own programs read. What a socket is called is what its owner has bound it to.
    """
    called = frames.getpeername()
    if Path(called).parent != Path(path).resolve():
        raise _NoAnswerError(f"it sent us to the socket {called!r}, which is not in its own directory")


def _connected(path: str) -> socket.socket:
    """A connection to the switch at this path. Raises `Fault`."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # It does not wait: a switch that does not take connections any more has a queue that is full.
        control.connect(f"{path}{CONTROL}")
    except OSError as error:
        control.close()
        raise _fault(path, error) from error
    return control


def _fault(path: str, error: OSError) -> Fault:
    group = "" if os.geteuid() == 0 else _own_group()
    match error.errno:
        case number if number in _NO_SWITCH:
            return missing_switch(path, group, is_taken=os.path.lexists(path))
        case errno.ECONNREFUSED:
            return unusable_switch(path, f"nothing listens at {path}{CONTROL}, which an ended switch has left", group)
        case errno.EACCES | errno.EPERM:
            why = f"this node, which runs as {users.name_of_this_user()}, may not write to {path}{CONTROL}"
            return unusable_switch(path, why, group)
        case _:
            return unusable_switch(path, error.strerror or str(error), group)


def _own_group() -> str:
    gid = os.getegid()
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
