"""Files of the caller whose text goes to a node: read up to a bound, or refused with a sentence."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from typing import Final

from aetherscale.gateways.cli.failures import bad_usage
from aetherscale.textfile import MARK, Unreadable, read_stream, read_text

MAX_TEXT_BYTES: Final = 128 * 1024
"""Half of what a message can carry: it is JSON, in which a line end takes two bytes."""
STANDARD: Final = "-"
"""The name of a file that stands for stdin."""


def text_of(path: str, flag: str) -> str:
    """The text of a file that was given with `flag`, or of stdin for `-`. Raises `Failure` (status 2).

    Nothing is changed in it: what it is for decides on line ends and byte order marks.
    """
    try:
        if path == STANDARD:
            if sys.stdin is None or sys.stdin.closed:
                raise Unreadable("cannot be read: it is closed")
            return read_stream(sys.stdin.buffer, MAX_TEXT_BYTES)
        return read_text(path, MAX_TEXT_BYTES)
    except Unreadable as wrong:
        hint = wrong.remedy.replace("FILE", shlex.quote(path)) if path != STANDARD else wrong.remedy
        raise bad_usage(f"{flag}: {shown(path)} {wrong}", hint) from None


def lines_of(path: str, flag: str) -> list[str]:
    """The lines of such a file, of whatever line ends, without blanks around them and without a byte order mark."""
    return [line.strip() for line in text_of(path, flag).removeprefix(MARK).splitlines()]


def shown(path: str) -> str:
    """How a message calls a file."""
    return "stdin" if path == STANDARD else path


def require_one_stdin(given: Iterable[tuple[str, str]]) -> None:
    """Raises `Failure` (status 2) where several of these flags, each with its file, want stdin, which is read once."""
    wanting = [flag for flag, path in given if path == STANDARD]
    if len(wanting) > 1:
        raise bad_usage(f"{' and '.join(wanting)}: got - for each, expected one of them: stdin is read once")
