"""The ports of a VM as they look from outside, one event after the other: see `oracle.py`."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any, Final

Data = dict[str, Any]
View = dict[str, Any]

GOING_ON: Final = ("booting", "running", "ready", "paused")


class ToldPorts:
    """Those of one VM."""

    def __init__(self, ports: list[Data]) -> None:
        self.of_tap = {port["tap"]: port for port in ports}
        self.leaving: set[str] = set()
        self.of_boot: set[str] = set()
        """Those that the present run began with."""
        self.later: set[str] = set()
        """Those that came to it after that."""
        self.plugged: set[str] = set()
        self.failure: Data | None = None

    def begin_run(self) -> None:
        self.of_boot, self.later, self.plugged = set(self.of_tap) - self.leaving, set(), set()

    def booted(self) -> None:
        self.plugged |= self.of_boot

    def ended(self) -> None:
        self.plugged, self.failure = set(), None

    def add(self, port: Data, phase: str) -> None:
        self.of_tap[port["tap"]], self.failure = port, None
        if phase in GOING_ON:
            self.later.add(port["tap"])

    def plug(self, tap: str) -> None:
        self.plugged.add(tap)
        self.failure = None

    def remove(self, tap: str, *, failed: bool) -> None:
        self.leaving.add(tap)
        self.failure = self.failure if failed else None

    def drop(self, tap: str) -> None:
        del self.of_tap[tap]
        self.leaving.discard(tap)
        self.failure = None

    def seen(self, phase: str) -> list[View]:
        """All of them in the VM's view."""
        return [{**_port(port), "card": self._card(tap, phase)} for tap, port in self.of_tap.items()]

    def _card(self, tap: str, phase: str) -> str:
        if tap in self.leaving:
            return "unplugging"
        if tap in self.plugged:
            return "plugged"
        return "plugging" if tap in self.later and phase in GOING_ON else "unplugged"


def _port(data: Data) -> View:
    """A port of a VM: what was decided when it was asked for, and by which way the guest learns of it."""
    addresses = [{"ip": data["ipv4"], "from": "lease"}] if data["ipv4"] else []
    if data["ipv6"]:
        # Formed from the MAC (RFC 4291, appendix A), unless it was chosen.
        is_formed = "ff:fe" in IPv6Address(data["ipv6"]).packed.hex(":")
        addresses.append({"ip": data["ipv6"], "from": "slaac" if is_formed else "lease"})
    same = {name: data[name] for name in ("network", "network-id", "mac", "tap", "allowed")}
    return {**same, "addresses": addresses}
