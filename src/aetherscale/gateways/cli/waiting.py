"""Waiting for a state of a VM: its events are followed, and the VM is read again at each, so that nothing is missed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

from aetherscale.bus.bus import BusUnavailable
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import NO_NODE, WAIT_RAN_OUT, Failure
from aetherscale.gateways.cli.guestview import facts_of
from aetherscale.gateways.cli.place import start
from aetherscale.gateways.cli.work import info
from aetherscale.kernel import subjects

NO_EVENT_S: Final = 1.0
"""How often a guest is asked for its addresses, of which no event tells."""
LOOK_AGAIN_S: Final = 10.0
"""How often the VM is asked for where no event comes: the node may have gone away."""

View = Mapping[str, Any]

_UNMET: Final = {"init": ", and its init script has not ended", "address": ", and has no address yet"}
"""What is missing where a wait runs out, if it is not the phase."""
_ENDED: Final = {"interrupted": "was interrupted", "not-run": "was not run", "lost": "was lost"}
"""How an init script has ended that has no exit status."""


def wait_for(context: Context, reference: str, wanted: str, timeout_s: float) -> View:
    """The view of the VM as soon as it is as wanted.

    Raises `Failure`: 500 where that cannot come any more, 504 (status 5) where the wait runs out.
    """
    until_s = time.monotonic() + timeout_s
    vm = info(context, "vm", reference)
    client = context.client
    events = client.connection.subscribe(subjects.object_events(context.settings.tenant, "vm", vm["id"]))
    with context.out.progress(vm["name"]) as progress:
        while True:
            vm = _looked_at(context, vm["id"], wanted)
            progress.step(vm["phase"])
            if wanted == "init":
                _require_script(vm)
            if _is(vm, wanted):
                return vm
            _refuse_the_impossible(vm, wanted)
            remaining_s = until_s - time.monotonic()
            if remaining_s <= 0:
                unmet = _UNMET.get(wanted, f", not {wanted}")
                raise Failure(
                    504,
                    f"the wait of {timeout_s:g} s ran out: the VM {vm['name']!r} is {vm['phase']}{unmet}",
                    hint=f"aetherscale vm show {vm['name']}",
                    status=WAIT_RAN_OUT,
                    is_note=True,
                    details={"vm-id": vm["id"], "phase": vm["phase"]},
                )
            try:
                events.receive(min(remaining_s, NO_EVENT_S if wanted == "address" else LOOK_AGAIN_S))
            except BusUnavailable as away:
                message = f"the connection to the node was lost: {away}"
                raise Failure(503, message, hint=start(context.settings), status=NO_NODE) from None


def _looked_at(context: Context, vm_id: str, wanted: str) -> View:
    """The view of the VM, and what its guest says of itself where that matters."""
    vm = info(context, "vm", vm_id)
    if wanted != "address" or vm["phase"] not in ("running", "ready"):
        return vm
    found = context.client.result("compute", "vm-info", {"vm-id": vm_id})
    return {**found["vm"], **found.get("host", {}), "guest": facts_of(context, vm)}


def _addresses(vm: View) -> list[str]:
    """The addresses of its ports that its guest says it has; without an agent, those that it is given."""
    given = [address["ip"] for port in vm["ports"] for address in port["addresses"]]
    given += [ip for port in vm["ports"] for ip in vm.get("leased", {}).get(port["tap"], ())]
    said = (vm.get("guest") or {}).get("addresses")
    if said is None:
        return given
    usable = [ip_address(each["ip"]) for each in said if _is_address(each["ip"])]
    return [str(ip) for ip in usable if not ip.is_link_local and (not vm["ports"] or str(ip) in map(_plain, given))]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _plain(text: str) -> str:
    return str(ip_address(text))


def _is(vm: View, wanted: str) -> bool:
    phase = vm["phase"]
    match wanted:
        case "ready":
            return bool(phase == "ready" or (phase == "running" and vm["ready-by"] == "none"))
        case "init":
            return bool(vm["init-script"]["state"] == "succeeded")
        case "running":
            return phase in ("running", "ready")
        case "address":
            return phase in ("running", "ready") and bool(_addresses(vm))
        case "stopped":
            return phase == "deleted" or (phase in ("stopped", "failed") and vm["observed"] in ("absent", "exited"))
        case _:
            return bool(phase == wanted)


def _require_script(vm: View) -> None:
    """Raises `Failure` where there is no init script, or it has not ended well."""
    script, name = vm["init-script"], vm["name"]
    if script is None:
        raise Failure(400, f"the VM {name!r} has no init script that could be waited for")
    if script["state"] not in ("awaited", "succeeded"):
        how = _ENDED.get(script["state"], f"failed with exit status {script['exit-status']}")
        raise Failure(
            500,
            f"the init script of the VM {name!r} {how}; the VM itself is {vm['phase']}",
            hint=f"aetherscale vm show {name}",
            details={
                "vm-id": vm["id"],
                "phase": vm["phase"],
                "exit-status": script["exit-status"],
                "log-tail": script["output"],
            },
        )


def _refuse_the_impossible(vm: View, wanted: str) -> None:
    """Where nothing is under way that could lead there, waiting is of no use."""
    phase, name = vm["phase"], vm["name"]
    if wanted == "deleted":
        if vm["requested"] != "deleted":
            return
        if phase == "failed":
            raise _hopeless(vm, f"the VM {name!r} could not be deleted")
    elif phase == "deleted" or vm["requested"] == "deleted":
        raise _hopeless(vm, f"the VM {name!r} is {'deleted' if phase == 'deleted' else 'being deleted'}")
    elif wanted in ("ready", "init", "running", "address") and phase in ("failed", "stopped"):
        raise _hopeless(vm, f"the VM {name!r} is {phase}, and no start was requested")


def _hopeless(vm: View, what: str) -> Failure:
    failure = vm["failure"] or {}
    reason = f": {failure['phase']}: {failure['reason']}" if failure else ""
    return Failure(
        500,
        f"{what}{reason}",
        hint=failure.get("hint") or f"aetherscale why vm {vm['name']}",
        details={"vm-id": vm["id"], "phase": vm["phase"], "log-tail": failure.get("log-tail", "")},
    )
