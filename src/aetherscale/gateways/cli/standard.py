"""The three standard streams, made fit for whatever the process was started with.

Descriptors that were closed have been opened on /dev/null before: see `aetherscale.__main__`. What stdout does not take
is an `Unwritable`, which cannot be mistaken for a fault of another file; what stderr does not take is lost, since it
cannot be reported. What an encoding cannot say is replaced.
"""

from __future__ import annotations

import codecs
import io
import select
import sys
import warnings
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT: Final = 1
STDERR: Final = 2
REPLACED: Final = "aetherscale.replaced"
"""The name of the way in which characters are replaced that an encoding does not have."""
_PLAIN: Final = {
    "…": "...",
    "→": "->",
    "←": "<-",
    "–": "-",
    "—": "-",
    "─": "-",
    "±": "+-",
    "▶": ">",
    "·": "-",
    "×": "x",
}


class Unwritable(Exception):
    """Stdout does not take what is written. `errno` is EPIPE where its reader has gone, who has read enough."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout cannot be written: {error.strerror}")
        self.errno = error.errno
        self.done = ""
        """The work that the command had done by then."""


class _Stdout(io.FileIO):
    """Reports once that it cannot be written; what is still buffered then is thrown away."""

    _is_lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self._is_lost:
            return memoryview(data).nbytes
        try:
            while (written := super().write(data)) is None:
                # Another program on this terminal has made it one that does not block.
                select.select((), (self.fileno(),), ())
        except OSError as error:
            self._is_lost = True
            raise Unwritable(error) from None
        return written


class _Stderr(io.FileIO):
    """Loses what cannot be written."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            while (written := super().write(data)) is None:
                select.select((), (self.fileno(),), ())
        except OSError:
            return memoryview(data).nbytes
        return written


def install() -> None:
    """Put the streams in the place of Python's own; those that a caller has put there are left."""
    codecs.register_error(REPLACED, _replaced)
    if sys.__stdout__ in (None, sys.stdout):
        sys.unraisablehook = _unraised
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # they are for who mends this program
        sys.stdout = _text(_Stdout(STDOUT, "w", closefd=False), sys.stdout)
    if sys.__stderr__ in (None, sys.stderr):
        sys.stderr = _text(_Stderr(STDERR, "w", closefd=False), sys.stderr)


def _unraised(_unraisable: sys.UnraisableHookArgs) -> None:
    """Errors that cannot be reported, as in the cleanup of a half-made loop, are dropped."""


def _text(raw: io.FileIO, before: TextIO | None) -> io.TextIOWrapper:
    encoding = (before.encoding if before is not None else None) or sys.getfilesystemencoding()
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, encoding=encoding, errors=REPLACED, line_buffering=raw.isatty())


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """The replacement of characters that an encoding does not have; a byte that was no UTF-8 is shown as `\\xff`."""
    if not isinstance(error, UnicodeEncodeError):
        return codecs.replace_errors(error)
    text = "".join(map(_stand_in, error.object[error.start : error.end]))
    return text, error.end


def _stand_in(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return _PLAIN.get(character, "?")
