"""A netlink socket whose requests are answered before the call that sends them returns.

The kernel does what a request of rtnetlink says, and queues the answer, while it is sent. So there is nothing to wait
for, as long as what is asked takes no time. A node asks here for no lists of many messages, and for no removals.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import Final

from aetherscale.actors.network.netlink.messages import HEADER, attributes_of, messages_of

NLM_F_CREATE: Final = 0x400
NLM_F_EXCL: Final = 0x200
NLM_F_REPLACE: Final = 0x100

DUMP_ATTEMPTS: Final = 10

_NLM_F_REQUEST_ACK: Final = 0x1 | 0x4
_NLM_F_REQUEST_DUMP: Final = 0x1 | 0x300
_NLM_F_DUMP_INTR: Final = 0x10
_NLMSG_DONE: Final = 3
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSG_ERROR: Final = 2
_NLMSGERR_ATTR_MSG: Final = 1
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_CODE: Final = struct.Struct("=i")
_DATAGRAM_BYTES: Final = 1 << 16


class Failed(Exception):
    """The kernel refused a request: the number of its error, and what it said."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code


class Direct:
    """A socket of the network namespace of the thread that makes it. One thread at a time uses it."""

    def __init__(self) -> None:
        """OSError: there are no descriptors left."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        with suppress(OSError):  # Words of the kernel beside its error's number; none before 4.12.
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._sequence = 0

    def ask(self, kind: int, how: int, body: bytes) -> list[bytes]:
        """Send a request, with the flags `how` beside those that each has; the messages of the answer.

        Raises `Failed`.
        """
        self._sequence = self._sequence % 0x7FFF_FFFF + 1
        header = HEADER.pack(HEADER.size + len(body), kind, _NLM_F_REQUEST_ACK | how, self._sequence, 0)
        answer: list[bytes] = []
        try:
            self._socket.send(header + body)
            while True:
                for answered, message in messages_of(self._socket.recv(_DATAGRAM_BYTES)):
                    _, _, flags, sequence, _ = HEADER.unpack_from(message)
                    # What was not read before, since somebody interrupted it, is for nobody.
                    if sequence != self._sequence:
                        continue
                    if answered != _NLMSG_ERROR:
                        answer.append(message)
                        continue
                    if code := -_CODE.unpack_from(message, HEADER.size)[0]:
                        raise Failed(code, _words(code, flags, message))
                    return answer
        except BlockingIOError as error:
            raise Failed(errno.EIO, "it gave no answer") from error
        except OSError as error:
            raise Failed(error.errno or errno.EIO, error.strerror or str(error)) from error

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Every message that there is of a kind. It is asked again where it changes meanwhile. Raises `Failed`."""
        for _ in range(DUMP_ATTEMPTS):
            found, is_whole = self._dump(kind, body)
            if is_whole:
                return found
        raise Failed(errno.EAGAIN, "it changed while it was read, again and again")

    def _dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._sequence = self._sequence % 0x7FFF_FFFF + 1
        header = HEADER.pack(HEADER.size + len(body), kind, _NLM_F_REQUEST_DUMP, self._sequence, 0)
        found: list[bytes] = []
        is_whole = True
        try:
            self._socket.send(header + body)
            while True:
                # The kernel has written the first datagram when the question is sent, and each other when one is read.
                for answered, message in messages_of(self._socket.recv(_DATAGRAM_BYTES)):
                    _, _, flags, sequence, _ = HEADER.unpack_from(message)
                    if sequence != self._sequence:
                        continue
                    is_whole = is_whole and not flags & _NLM_F_DUMP_INTR
                    if answered == _NLMSG_DONE:
                        return found, is_whole
                    if answered == _NLMSG_ERROR:
                        code = -_CODE.unpack_from(message, HEADER.size)[0]
                        raise Failed(code, _words(code, flags, message))
                    found.append(message)
        except BlockingIOError as error:
            raise Failed(errno.EIO, "it gave no answer") from error
        except OSError as error:
            raise Failed(error.errno or errno.EIO, error.strerror or str(error)) from error

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()


def _words(code: int, flags: int, message: bytes) -> str:
    said = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS and flags & _NLM_F_CAPPED:
        words = attributes_of(message, HEADER.size + _CODE.size + HEADER.size).get(_NLMSGERR_ATTR_MSG, b"")
        if words:
            said = f"{said}: {words.rstrip(bytes(1)).decode(errors='backslashreplace')}"
    return said
