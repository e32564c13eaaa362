"""The commands of `vm`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import closing, nullcontext, suppress
from typing import Any

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import bad_usage
from aetherscale.gateways.cli.files import STANDARD, lines_of, require_one_stdin, shown, text_of
from aetherscale.gateways.cli.history import tell_future
from aetherscale.gateways.cli.objects import done, each_named, labels
from aetherscale.gateways.cli.streams import ends_with_its_reader
from aetherscale.gateways.cli.views import count, show_table, show_vm_to_human
from aetherscale.gateways.cli.work import info, suggesting, taken, told_of


def create_vm(context: Context) -> None:
    """Make a VM, start it, and wait until its guest is ready."""
    values = context.values
    script, user_data = values["init-script"], values["cloud-init"]
    read = (("--init-script", script), ("--cloud-init", user_data))
    files = [(flag, path) for flag, path in read if path is not None]
    require_one_stdin([*files, *(("--ssh-key", path) for path in values["ssh-key"])])
    options: dict[str, Any] = {"image": values["image"]}
    given = {
        "name": values["NAME"],
        "cpus": values["cpus"],
        "memory-mib": values["memory"],
        "disk-gib": values["disk"],
        "node": values["node"],
        "restart": values["restart"],
        "labels": labels(values["label"]),
        "virtual-network": values["network"],
        "allow-addresses": values["allow-address"],
        "publish": values["publish"],
        "host-loopback": values["host-loopback"],
        "vpn": values["vpn"],
        "public-ip": values["public-ip"],
        "addresses": values["address"],
        "init-script": None if script is None else text_of(script, "--init-script"),
        "cloud-init": None if user_data is None else text_of(user_data, "--cloud-init"),
        "wait-for": values["wait-for"],
        "ssh-keys": [key for path in values["ssh-key"] for key in _keys(path)],
        "user": values["user"],
        "groups": values["group"],
    }
    left_out: tuple[object, ...] = ([], {})  # by equality; a 0 equals False, and somebody has asked for it
    options |= {
        name: value
        for name, value in given.items()
        if value is not None and value is not False and value not in left_out
    }
    if values["no-autostart"]:
        options["autostart"] = False
    _work(context, "create-vm", options, values["NAME"] or "new VM")


def _keys(path: str) -> list[str]:
    """The keys in a file, as in one for `sshd`. Raises `Failure` (status 2): a private key is sent nowhere."""
    lines = lines_of(path, "--ssh-key")
    if any("PRIVATE KEY" in line for line in lines):
        where = f"may be in {path}.pub" if path != STANDARD else "is in the file that ends with .pub"
        raise bad_usage(f"--ssh-key: {shown(path)} is a private key", f"its public key {where}")
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise bad_usage(f"--ssh-key: there is no key in {shown(path)}", "ssh-keygen -t ed25519 makes a pair")
    return keys


def _work(context: Context, task: str, options: Mapping[str, Any], subject: str) -> None:
    vm = _done(context, task, options, subject)
    if context.out.json:
        with taken(told_of("vm", vm)):
            context.out.value(vm)
    elif task == "create-vm" and vm["phase"] in ("ready", "running"):
        context.suggest(f"next: aetherscale vm {'ssh' if _is_for_ssh(context, vm) else 'console'} {vm['name']}")


def _is_for_ssh(context: Context, vm: Mapping[str, Any]) -> bool:
    """Whether somebody may log in to a guest by SSH, and there is a way to it: an address, or its agent."""
    from aetherscale.gateways.cli.vm_ssh import places_of

    return bool(vm["ssh-keys"]) and (vm["ready-by"] == "agent" or bool(places_of(context, vm)))


def ssh_vm(context: Context) -> int:
    """Log in to a guest by SSH; answers with the exit status."""
    # Here, since few commands need what runs programs.
    from aetherscale.gateways.cli import vm_ssh

    return vm_ssh.ssh_vm(context)


def _done(context: Context, task: str, options: Mapping[str, Any], subject: str) -> Mapping[str, Any]:
    """Have it done, and show the result; answers with the view."""
    node, image = context.values.get("node") or "", context.values.get("image") or ""
    return done(context, "vm", task, options, subject=subject, node=node, meant=image)


def list_vms(context: Context) -> None:
    """Show all VMs."""
    values = context.values
    options = {"all": values["all"], "labels": labels(values["label"])}
    vms = [item["vm"] for item in context.client.items("compute", "list-vms", options, node=values["node"] or "")]
    if context.out.json:
        context.out.value(vms)
    elif vms:
        show_table(context.out, "vm", vms, context.program.now_us(), wide=values["wide"])
    else:
        context.suggest("no virtual machines; to create one: aetherscale vm create web --image tiny")


def show_vm(context: Context) -> None:
    """Show everything that is known of a VM."""
    from aetherscale.gateways.cli.guestview import facts_of

    reference = context.values["NAME"]
    with suggesting(context, "vm", reference):
        found = context.client.result("compute", "vm-info", {"vm-id": reference})
    vm = {**found["vm"], **found.get("host", {})}
    if (guest := facts_of(context, vm)) is not None:
        vm["guest"] = guest
    if context.out.json:
        context.out.value(vm)
        return
    show_vm_to_human(context.out, vm, context.program.now_us())
    for port in vm["ports"]:
        if port["tap"] in vm.get("cut", ()):
            context.suggest(_cut_off(context, vm["name"], port))
    if foreign := sum(kinds.get("ipv6", 0) for kinds in vm.get("dropped", {}).values()):
        context.suggest(
            f"{count(foreign, 'packet')} from foreign IPv6 addresses dropped: does the guest use privacy extensions? "
            "See docs/networks.md"
        )


def _cut_off(context: Context, name: str, port: Mapping[str, Any]) -> str:
    """From which network a VM is cut off, by what, and what to do."""
    network = info(context, "network", port["network-id"])
    if network["phase"] == "restoring":
        why = f"{network['down']}; the network is being restored: aetherscale network show {network['name']}"
    else:
        why = f"another program removed its tap, {port['tap']}; to connect it again: aetherscale vm restart {name}"
    return f"the VM is cut off the network {network['name']}: {why}"


def start_vm(context: Context) -> int:
    """Start VMs and wait until their guests are ready."""
    return _each(context, "start-vm", {})


def restart_vm(context: Context) -> int:
    """Stop VMs and start them again."""
    return _each(context, "restart-vm", {})


def stop_vm(context: Context) -> int:
    """Bring VMs down."""
    return _each(context, "stop-vm", _ending(context))


def delete_vm(context: Context) -> int:
    """Bring VMs down and remove them."""
    return _each(context, "delete-vm", _ending(context))


def _each(context: Context, task: str, options: Mapping[str, Any]) -> int:
    """The task for each VM that was named."""
    return each_named(context, "vm", lambda name: _done(context, task, {"vm-id": name, **options}, name))


def _ending(context: Context) -> Mapping[str, Any]:
    options: dict[str, Any] = {"kill": context.values["kill"]}
    if context.values["grace"] is not None:
        options["grace-s"] = context.values["grace"]
    return options


def logs_vm(context: Context) -> None:
    """Write what a VM wrote to its serial line."""
    values = context.values
    name, as_json = values["NAME"], context.out.json
    beginnings = [f"--{option}" for option in ("lines", "since") if values[option] is not None]
    if beginnings and values["tail"] is not None:
        raise bad_usage(f"vm logs: {beginnings[0]} and --tail: got both, expected one of them")
    options: dict[str, Any] = {"vm-id": name, "follow": values["follow"], "raw": not as_json}
    if values["lines"] is not None:
        options["lines"] = values["lines"]
    if values["tail"] is not None:
        options["tail-bytes"] = values["tail"]
    options |= _since(context, values["since"])
    shown = context.out.bytes()
    chunks = context.client.ask("compute", "vm-logs", options, timeout_s=None)
    follows = values["follow"]
    watched = ends_with_its_reader() if follows else nullcontext()
    interrupted = suppress(KeyboardInterrupt) if follows else nullcontext()  # following ends in no other way
    with interrupted, watched, closing(chunks), suggesting(context, "vm", name):
        for chunk in chunks:
            if chunk["type"] != "item":
                _tell_doubts(context, chunk)
                continue
            if as_json:
                context.out.json_line({"text": chunk["text"]})
            else:
                shown.write(base64.b64decode(chunk["data"]))


def _since(context: Context, text: str | None) -> dict[str, Any]:
    """A moment as the options of `vm-logs`; what counts back from now does so by the clock of the node."""
    from aetherscale.kernel.moments import EXPECTED, ago_s, from_text
    from aetherscale.kernel.times import to_rfc3339

    if text is None:
        return {}
    now_us = context.program.now_us()
    try:
        passed_s = ago_s(text)
        tell_future(context, text, "only what is written from then on is shown")
        return {"since": to_rfc3339(from_text(text, now_us))} if passed_s is None else {"since-s": passed_s}
    except (ValueError, OverflowError):
        raise bad_usage(f"vm logs: --since: got {text[:80]!r}, expected {EXPECTED}") from None


def _tell_doubts(context: Context, chunk: Mapping[str, Any]) -> None:
    """Print notes about uncertain times in a log."""
    if chunk.get("clock-went-back"):
        context.out.note("the clock of the host was set back while this was written: some of it is older")
    if chunk.get("has-no-times"):
        context.out.note("an older version wrote some of this and kept no times: some of it may be older")


def wait_vm(context: Context) -> None:
    """Wait until a VM is in a state."""
    from aetherscale.gateways.cli.waiting import wait_for

    vm = wait_for(context, context.values["NAME"], context.values["for"], context.values["timeout"])
    if context.out.json:
        context.out.value(vm)
    else:
        script = "; its init script has succeeded" if context.values["for"] == "init" else ""
        context.out.line(f"{vm['name']} ({vm['id']}) is {vm['phase']}{script}")


def console_vm(context: Context) -> None:
    """Attach to the serial line of a VM."""
    from aetherscale.gateways.cli.console import attach

    name = context.values["NAME"]
    if context.out.json:
        hint = f"without --json; or, to read alone: aetherscale vm logs {name} --follow --json"
        raise bad_usage("vm console: --json is refused: a serial console sends bytes, not JSON", hint)
    attach(context, name, context.values["detach-key"], context.values["tail"])
