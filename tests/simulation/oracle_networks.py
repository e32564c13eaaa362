"""Networks and security groups, as the oracle tells of them. See `oracle`."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from aetherscale.kernel.names import derive_id
from tests.simulation.telling import Data, Told, View


def _on_the_host(data: Data) -> dict[str, Any]:
    """What a network has on the host: its bridge, and the addresses of its router and its resolver."""
    spec = data["spec"]
    prefixes = [ip_network(spec[version]) for version in ("ipv4", "ipv6") if spec[version]]
    resolvers = [str(prefix[-2] if prefix.version == 4 else prefix[0x53]) for prefix in prefixes]
    return {
        "device": spec["bridge"] or f"aeb{derive_id('bridge', data['network-id'])[-12:]}",
        "router": [str(prefix[1]) for prefix in prefixes] if spec["kind"] == "nat" else [],
        "resolver": resolvers if spec["kind"] not in ("bridged", "public") else [],
    }


class ToldNetwork(Told):
    """A network."""

    def on_NetworkRequested(self, data: Data) -> None:  # noqa: N802
        self.set(id=data["network-id"], phase="creating", down="", **data["spec"], **_on_the_host(data))

    def on_NetworkUp(self, data: Data) -> None:  # noqa: N802
        self.set(phase="ready", down="", failure=None)

    def on_NetworkDown(self, data: Data) -> None:  # noqa: N802
        self.set(phase="restoring", down=data["what"])

    def on_NetworkStepFailed(self, data: Data) -> None:  # noqa: N802
        if self.view["phase"] == "restoring":
            self.fail(data, data["step"])
        elif data["retry-at"] is None:
            if self.view["failure"] is None:
                self.fail(data, data["step"])
            self.set(phase="failed")

    def on_NetworkUndone(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleting")

    def on_NetworkDeleteRequested(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleting", failure=None)

    def on_NetworkDeleted(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleted")


class ToldGroup(Told):
    """A security group."""

    def on_GroupRequested(self, data: Data) -> None:  # noqa: N802
        self.set(id=data["group-id"], name=data["spec"]["name"], phase="applying", applied_revision=0)
        self._has(1, data["spec"]["rules"])

    def on_RulesSet(self, data: Data) -> None:  # noqa: N802
        self.set(phase="applying", failure=None)
        self._has(data["revision"], data["rules"])

    def _has(self, revision: int, rules: list[Data]) -> None:
        self.set(rules_revision=revision, rules=[_rule(each) for each in rules])

    def on_GroupApplied(self, data: Data) -> None:  # noqa: N802
        self.set(phase="ready", applied_revision=data["revision"])

    def on_GroupStepFailed(self, data: Data) -> None:  # noqa: N802
        if data["retry-at"] is None:
            self.set(phase="failed")
            self.fail(data, data["step"])

    def on_GroupDeleteRequested(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleting", failure=None)

    def on_GroupDeleted(self, data: Data) -> None:  # noqa: N802
        self.set(phase="deleted")


def _rule(data: Data) -> View:
    """A rule of a group, with its text; what an event leaves out of one is nothing."""
    rule = {"ports": [], "types": [], "cidr": None, "group-id": None, "group": None, **data}
    text = f"{rule['direction']}:{rule['protocol']}"
    if listed := [*rule["ports"], *rule["types"]]:
        text += f":{','.join(listed)}"
    if whom := rule["cidr"] or (f"group/{rule['group']}" if rule["group"] else ""):
        text += f":{'from' if rule['direction'] == 'in' else 'to'}={whom}"
    return {"text": text, **rule}
