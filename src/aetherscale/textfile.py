"""A small file of text that somebody has named: whole, up to a bound, without waiting for ever.

A file may be a pipe, as that of a shell's `<(command)`: it is read until its writer ends it, however long that takes.
Of a FIFO that nobody writes to it is said that nobody does.
"""

from __future__ import annotations

import os
import select
import stat
from typing import IO, Final

WRITER_S: Final = 5.0
"""How long a FIFO is waited for that no program has open for writing."""
MARK: Final = "\ufeff"
"""The byte order mark, with which some editors begin a file in UTF-8."""

_PIECE_BYTES: Final = 64 * 1024
_OTHER_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")


class Unreadable(Exception):
    """A file that cannot be taken. Its text follows the name of the file in a sentence."""

    def __init__(self, why: str, remedy: str = "", *, is_missing: bool = False) -> None:
        super().__init__(why)
        self.remedy = remedy
        self.is_missing = is_missing


def read_text(path: str, most_bytes: int, *, regular: bool = False) -> str:
    """The text of a file; its bytes are unchanged, a byte order mark included. Raises `Unreadable`.

    With `regular`, what is no regular file is refused, so that nothing is ever waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if regular and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise Unreadable("is no regular file")
            content = _read(descriptor, most_bytes, is_fifo=stat.S_ISFIFO(mode))
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unreadable(f"cannot be read: {error.strerror}", is_missing=True) from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise Unreadable("cannot be read: no file has such a name") from None
    return decoded(content, most_bytes)


def read_stream(stream: IO[bytes], most_bytes: int) -> str:
    """The same of a stream that is open, as stdin. Raises `Unreadable`."""
    try:
        return decoded(stream.read(most_bytes + 1), most_bytes)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def decoded(content: bytes, most_bytes: int) -> str:
    """What was read, as text. Raises `Unreadable` for more than is allowed, and for another encoding."""
    if len(content) > most_bytes:
        bound = f"{most_bytes // 1024} KiB" if most_bytes % 1024 == 0 else f"{most_bytes} bytes"
        raise Unreadable(f"is too large: expected at most {bound} of text")
    try:
        return content.decode()
    except UnicodeDecodeError:
        remedy = "iconv -f UTF-16 -t UTF-8 FILE" if content.startswith(_OTHER_MARKS) else ""
        raise Unreadable("cannot be read: it is not text in UTF-8", remedy) from None


def _read(descriptor: int, most_bytes: int, *, is_fifo: bool) -> bytes:
    """Up to one byte more than is allowed. Raises OSError, `Unreadable`."""
    content = bytearray()
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    while len(content) <= most_bytes:
        try:
            piece = os.read(descriptor, min(_PIECE_BYTES, most_bytes + 1 - len(content)))
        except BlockingIOError:
            ready.poll()  # a program has it open, and has not written yet
            continue
        if not piece:
            if content or not is_fifo:
                break
            if not ready.poll(WRITER_S * 1000):
                raise Unreadable("cannot be read: it is a FIFO, and no program writes to it")
            is_fifo = False  # a program has it now, or has had it and is gone: then this is its end
            continue
        content += piece
    return bytes(content)
