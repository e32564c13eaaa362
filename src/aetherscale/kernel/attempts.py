"""Attempts at the step of an aggregate that is pending on the host: how many there may be, and when each is due.

One rule for every component. Pure.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from aetherscale.kernel.times import SECOND_US, from_rfc3339, to_rfc3339

ATTEMPT_LIMIT: Final = 3
"""Attempts at one step before it has failed for good."""


class Attempt(Struct, frozen=True, gc=False):
    """Which attempt at a step is pending. A step that begins has the first one: see `FIRST`."""

    number: int = 1
    """Counted from 1."""
    not_before_us: int = 0
    """When it may be made, in microseconds since 1970 UTC; 0 for at once."""
    blocked: bool = False
    """Whether the host has refused the step for good: it is not tried again until a caller asks."""

    def retry_at(self, at_us: int, *, retryable: bool) -> str | None:
        """When to try again after this one has failed (RFC 3339); None where it is not tried again."""
        return backoff(at_us, self.number) if retryable and self.number < ATTEMPT_LIMIT else None

    def after_failure(self, number: int, retry_at: str | None) -> Attempt:
        """What follows on the failure of attempt `number`, by when it is tried again. What was blocked stays so."""
        if retry_at is None:
            return Attempt(number, blocked=True)
        return Attempt(number + 1, from_rfc3339(retry_at), self.blocked)


FIRST: Final = Attempt()
"""The first attempt at a step, at once."""


def backoff(at_us: int, number: int) -> str:
    """1, 2, 4 … seconds after `at_us` for number 1, 2, 3 …, as RFC 3339; numbers have their limits."""
    return to_rfc3339(at_us + 2 ** (number - 1) * SECOND_US)
