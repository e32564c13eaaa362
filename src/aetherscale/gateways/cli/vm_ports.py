"""`vm attach` and `vm detach`: the ports of a VM that is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.work import carry_out, suggesting, taken


def attach_vm(context: Context) -> None:
    """Give a VM a port in one more network."""
    options = {"network": context.values["NETWORK"]}
    if context.values["allow-address"]:
        options["allow-addresses"] = context.values["allow-address"]
    _change(context, "attach-vm", options)


def detach_vm(context: Context) -> None:
    """Take a VM's port in a network away."""
    _change(context, "detach-vm", {"network": context.values["NETWORK"]})


def _change(context: Context, task: str, options: Mapping[str, Any]) -> None:
    name = context.values["VM"]
    with suggesting(context, "vm", name), suggesting(context, "network", options["network"]):
        vm, elapsed_s = carry_out(context, "compute", task, {"vm-id": name, **options}, subject=name, kind="vm")
    if context.out.json:
        with taken(f"the ports of the VM {vm['name']} ({vm['id']}) have changed"):
            context.out.value(vm)
        return
    networks = ", ".join(port["network"] + _how(port["card"]) for port in vm["ports"])
    context.out.line(f"{vm['name']} ({vm['id']}) is in {networks}, after {elapsed_s:.1f} s")


def _how(card: str) -> str:
    """What is still to be done for a port."""
    return {"plugged": "", "unplugged": " (from its next start on)"}.get(card, f" ({card})")
