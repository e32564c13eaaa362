"""How a command ends badly: the error that a user reads, and the exit status that a script reads.

0  done                                    3  no such object
1  failed                                  4  no node answered
2  bad usage, or input that was refused    5  the wait ran out while the work goes on
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from aetherscale.bus.refusals import SLUGS
from aetherscale.bus.refusals import error as error_chunk
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.replies import Chunk

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
NO_NODE: Final = 4
WAIT_RAN_OUT: Final = 5

_STATUS: Final[Mapping[int, int]] = {400: USAGE, 404: NOT_FOUND, 413: USAGE, 504: WAIT_RAN_OUT}


class Failure(Exception):
    """An error of a command. `hint` is what to type or change next."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        hint: str = "",
        status: int | None = None,
        details: Mapping[str, Any] | None = None,
        retryable: bool = False,
        is_note: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.shown = ""
        """The message in the user's words, where they differ."""
        self.hint = hint
        self.status = _STATUS.get(code, FAILED) if status is None else status
        self.details = dict(details or {})
        self.retryable = retryable
        self.is_note = is_note
        """Whether this is not an error: the command stopped waiting."""
        self.is_interrupt = False
        """Whether it was Ctrl-C that ended it."""

    @classmethod
    def of_chunk(cls, chunk: Mapping[str, Any]) -> Failure:
        """The failure in a node's `error` chunk."""
        details = dict(chunk.get("details") or {})
        hint = details.pop("hint", "")
        goes_on = details.get("goes-on")
        status = WAIT_RAN_OUT if goes_on is True else FAILED if goes_on is False else None
        retryable = chunk.get("retryable", False)
        return cls(chunk["code"], chunk["message"], hint=hint, status=status, details=details, retryable=retryable)

    @classmethod
    def of_refusal(cls, refused: Refused) -> Failure:
        """The failure of something that was refused here, before any node was asked."""
        return cls.of_chunk(error_chunk(refused))

    def chunk(self) -> Chunk:
        """The same as an `error` chunk: what `--json` writes to stderr."""
        hint = {"hint": self.hint} if self.hint else {}
        return {
            "type": "error",
            "code": self.code,
            "error": SLUGS.get(self.code, "error"),
            "message": self.message,
            "retryable": self.retryable,
            "details": {**self.details, **hint},
        }


def bad_usage(message: str, hint: str = "") -> Failure:
    """The words of the command line are not understood."""
    return Failure(400, message, hint=hint, status=USAGE)


def later_version(what: str, hint: str = "") -> Failure:
    """Something that this version does not have."""
    return Failure(501, f"{what}: not in this version", hint=hint)


def badness(status: int) -> int:
    """How bad an exit status is beside others: a wait that ran out is no failure, so everything else is worse."""
    return (DONE, WAIT_RAN_OUT, FAILED, USAGE, NOT_FOUND, NO_NODE).index(status)


def near(word: str, known: Sequence[str]) -> str:
    """Which of the known words may have been meant; "" where none looks like it."""
    import difflib

    found = difflib.get_close_matches(word, known, 1, 0.6)
    return found[0] if found else ""


@contextmanager
def meant(word: str) -> Iterator[None]:
    """Add the word that may have been meant to a refusal that lists the known words."""
    try:
        yield
    except Refused as refused:
        failure = Failure.of_refusal(refused)
        found = near(word, failure.details.pop("known", ()))
        if found:
            failure.hint = f"did you mean: {found}?"
        raise failure from None
