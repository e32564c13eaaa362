"""What goes wrong, drawn from the seed. Each run has its own mix, so that some are calm and some are awful."""

from __future__ import annotations

import random
from typing import Final, Literal

from aetherscale.actors.compute.simulated.host import Behaviour

Trouble = Literal["hang", "fail", "refuse"]
LogTrouble = Literal["in doubt, kept", "in doubt, lost"]

CALM: Final = Behaviour(start_s=0.05, ready_after_s=2.0, shutdown_s=0.5)


class Faults:
    """Draws faults until it is told to stop."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.active = True
        self._delays = chance.choice([0.0, 0.02, 0.2])
        self._troubles = chance.choice([0.0, 0.05, 0.2])
        self._log_troubles = chance.choice([0.0, 0.0, 0.01])
        self._wild_guests = chance.choice([0.0, 0.2, 0.6])
        self._outages = chance.choice([0.0, 0.0, 0.3])
        self._network_troubles = chance.choice([0.3, 0.3, 1.0])
        """How much of the troubles the steps on networks have."""
        self._kill_span = chance.choice([40, 80, 200])

    def kill_at(self) -> int:
        """The call of a port at which the process dies; 0 for none."""
        return self._chance.randint(1, self._kill_span) if self.active else 0

    def dies_before(self) -> bool:
        """Whether the process dies before its last call has its effect; else after it."""
        return self._chance.random() < 0.5

    def lives_s(self) -> float | None:
        """When a process is told to stop; None for never."""
        return self._chance.choice([1.0, 30.0, 300.0]) if self.happens(0.3) else None

    def delay_s(self, port: str) -> float:
        """How much longer than nothing a call takes."""
        if not self.active or self._chance.random() >= self._delays:
            return 0.0
        return self._chance.choice([0.0001, 0.01, 0.3, 5.0])

    def trouble(self, effect: str) -> Trouble | None:
        """What happens to an effect instead of what was asked."""
        if not self.active or self._chance.random() >= self._troubles:
            return None
        return self._chance.choice(["hang", "fail", "fail", "refuse"])

    def trouble_of_network(self, step: str) -> Trouble | None:
        """What happens to one step on the host's networks, of which an effect has several."""
        return self.trouble(step) if self.happens(self._network_troubles) else None

    def loses_answer(self) -> bool:
        """Whether an effect is done and yet told as failed."""
        return self.happens(self._troubles / 3)

    def log_trouble(self) -> LogTrouble | None:
        """A commit of which nobody knows whether it is durable."""
        if not self.active or self._chance.random() >= self._log_troubles:
            return None
        return self._chance.choice(["in doubt, kept", "in doubt, lost"])

    def happens(self, probability: float) -> bool:
        """Whether something happens, while anything may."""
        return self.active and self._chance.random() < probability

    def reboots(self) -> bool:
        """Whether the host is rebooted after the node has died."""
        return self.happens(0.05)

    def outage(self) -> bool:
        """Whether the broker goes down now."""
        return self.happens(self._outages)

    def behaviour(self) -> Behaviour:
        """What a guest does in its next run."""
        if not self.active or self._chance.random() >= self._wild_guests:
            return CALM
        chance = self._chance
        return Behaviour(
            start_s=chance.choice([0.0, 0.05, 3.0]),
            start_failure=chance.choice(["", "", "", "qemu: no"]),
            ready_after_s=chance.choice([0.0, 2.0, 40.0, None]),
            shutdown_s=chance.choice([0.0, 0.5, 20.0, None]),
            power_off_after_s=chance.choice([None, None, 3.0, 100.0]),
            panic_after_s=chance.choice([None, None, None, 7.0]),
            crash_after_s=chance.choice([None, None, 0.5, 30.0]),
            is_unresponsive=chance.random() < 0.1,
        )
