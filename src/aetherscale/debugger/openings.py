"""What the firewall let pass at a moment: the law, on what the log had then."""

from __future__ import annotations

from typing import Any

from aetherscale.actors.compute.model import events as vms
from aetherscale.actors.firewall.model import events as groups
from aetherscale.actors.firewall.model.explain import Explanation, explain, topology
from aetherscale.actors.network.model import events as networks
from aetherscale.debugger.past import Past
from aetherscale.kernel.errors import Reason, Refused, Task


def explained(past: Past, tenant: str, source: str, target: str, port: str) -> Explanation:
    """As the task `explain` answers, of a moment in the past. Raises `Refused`."""
    of_networks: list[Any] = past.views(networks.KIND, tenant)
    of_vms: list[Any] = past.views(vms.KIND, tenant)
    rules = [each.state for each in past.objects(groups.KIND, tenant)]
    try:
        return explain(topology(of_networks, rules, of_vms), source, target, port)
    except Refused as missing:
        if missing.reason is Reason.NOT_FOUND:
            when = Task("replay", options={"at": str(past.position)})
            missing.remedy = (f"at event {past.position} there was none; what there was: ", when)
        raise
