"""What any object of the oracle has: a view, changed by one event after the other. See `oracle`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from aetherscale.eventstore.store import StoredEvent

Data = dict[str, Any]
View = dict[str, Any]


def moment(time_us: int) -> str:
    return (
        datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{time_us % 1_000_000:06d}Z"
    )


class Told:
    """An object as it looks from outside, one event after the other."""

    def __init__(self, node: str) -> None:
        self.view: View = {"node": node, "revision": 0, "failure": None, "requested-by": None}

    def take(self, event: StoredEvent) -> None:
        """One more event."""
        before = self.view.get("phase")
        data = msgspec.msgpack.decode(event.data)
        getattr(self, f"on_{event.type}")(data)
        self.view["revision"] += 1
        if not event.actor.startswith("aether:"):
            self.view["requested-by"] = event.actor
        if self.view["phase"] != before:
            self.view["since"] = moment(event.time_us)

    def set(self, **fields: Any) -> None:
        self.view.update({name.replace("_", "-"): value for name, value in fields.items()})

    def fail(self, data: Data, phase: str) -> None:
        self.set(failure={"phase": phase, "reason": data["reason"], "hint": data["hint"], "log-tail": data["log-tail"]})
