"""Files of the caller whose text goes to a node: read up to a bound, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aetherscale.gateways.cli.failures import bad_usage

MAX_TEXT_BYTES: Final = 128 * 1024
"""Half of what a message can carry: it is JSON, in which a line end takes two bytes."""


def text_of(path: str, flag: str) -> str:
    """The text of a file that was given with `flag`. Raises `Failure` (status 2)."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise bad_usage(f"{flag}: {path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_TEXT_BYTES:
        raise bad_usage(f"{flag}: {path} is too large: expected at most {MAX_TEXT_BYTES // 1024} KiB of text")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise bad_usage(f"{flag}: {path} cannot be read: it is not text in UTF-8") from None
