"""What was sent that has to be dropped, and so what the counters of the kernel may say while more is being sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from aetherscale.actors.network.model.chains import Drop

Key = tuple[str, Drop]
"""A tap and a kind that frames of its guest are counted as."""


class Tally:
    """How many frames of each tap and kind were begun to be sent, and were sent. Each is written by one thread."""

    def __init__(self) -> None:
        self.begun: Counter[Key] = Counter()
        self.done: Counter[Key] = Counter()
        self.begun_early: Counter[Key] = Counter()
        self.done_early: Counter[Key] = Counter()
        """Sent to a tap that was about to be up, where a frame may be dropped before it is counted."""

    def now(self) -> Tally:
        """As it is at this moment. A copy of a dictionary is one step for other threads."""
        copied = Tally()
        # What is done is read first: it is never more than what was begun.
        for name in ("done_early", "done", "begun", "begun_early"):
            setattr(copied, name, Counter(dict.copy(getattr(self, name))))
        return copied


@dataclass
class Window:
    """What the counters of the kernel may say, which began at zero at some moment between `since` and `until`."""

    since: Tally = field(default_factory=Tally)
    until: Tally = field(default_factory=Tally)

    def least(self, now: Tally, key: Key) -> int:
        """Of what was done by `now`, less what may have been before it began."""
        return now.done[key] - self.until.begun[key]

    def most(self, now: Tally, key: Key) -> int:
        """Of what was begun by `now`, less what was done before it may have begun."""
        begun = now.begun[key] + now.begun_early[key]
        return begun - self.since.done[key] - self.since.done_early[key]
