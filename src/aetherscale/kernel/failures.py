"""What the host could not do: as a driver answers it, as a state and its view keep it, as a caller is told of it.

One of each for every component. The events `…StepFailed` are not of this module: each is kept for ever, in the shape
that it was given. Pure.
"""

from __future__ import annotations

from msgspec import Struct

from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.fault import Fault


class EffectFailed(Struct, frozen=True):
    """The host could not do what the effect asked."""

    key: str
    """The key of the effect."""
    reason: str
    """One sentence: what was tried, what was got, what was expected."""
    hint: str = ""
    """What the user can do about it, in words; "" for nothing."""
    retryable: bool = True
    """Whether another attempt a moment later may succeed."""
    log_tail: str = ""
    """The end of the log that shows it."""

    @classmethod
    def by(cls, key: str, fault: Fault) -> EffectFailed:
        """The answer to the effect `key` that ended with a fault."""
        return cls(key, fault.reason, fault.remedy, fault.retryable, fault.log_tail)


class Failure(Struct, frozen=True, rename="kebab"):
    """Why an object has failed."""

    phase: str
    """The step that failed, as `step` in the event that tells of it; `running` where a run of a VM ended badly."""
    reason: str
    """The failure, in one sentence."""
    hint: str = ""
    """The remedy, for the user; "" for none."""
    log_tail: str = ""
    """The end of the log that shows it, at most 2 KiB; "" for none."""

    def refused(self, message: str, *, instead: Task | str = "", **aggregate: str) -> Refused:
        """What a caller is told who waited for the opposite.

        `aggregate` names what has failed (`vm_id="…"`); `instead` is the remedy where the failure has none.
        """
        named = {name.replace("_", "-"): value for name, value in aggregate.items()}
        return Refused(
            Reason.INTERNAL,
            message,
            remedy=self.hint or instead,
            details={**named, "phase": self.phase, "reason": self.reason, "log-tail": self.log_tail},
        )


def told(step: str, attempt: int, retry_at: str | None, reason: str) -> str:
    """The sentence of an event that says that an attempt at a step failed."""
    again = f"to be tried again at {retry_at}" if retry_at else "not to be tried again"
    return f"{step} failed, attempt {attempt}, {again}: {reason}"
