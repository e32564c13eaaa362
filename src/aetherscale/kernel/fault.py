"""The one way to say that the host could not do something."""

from __future__ import annotations


class Fault(Exception):
    """What was tried and what happened, in one sentence (`reason`), and what the user can do about it (`remedy`).

    `retryable` says whether another attempt a moment later may succeed; `log_tail` is the end of the log that shows it.
    A driver answers an effect with it; it is never a traceback. An event keeps the remedy for ever, so it is
    in words that hold at every door: it may name a command of the host, a task of ours has none.
    """

    def __init__(self, reason: str, remedy: str = "", *, retryable: bool = True, log_tail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.retryable = retryable
        self.log_tail = log_tail
