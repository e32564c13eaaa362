"""`vm`: virtual machines."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import FAILED, bad_usage
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.values import detach_key, gibibytes, label, mebibytes, number, seconds
from aetherscale.gateways.cli.views import show_object, show_vms
from aetherscale.gateways.cli.work import WAIT_OPTIONS, carry_out, info, suggesting

SIGNAL_BASE = 128
"""As shells have it: a program that was ended by a signal has 128 and its number as exit status."""


def _create(context: Context) -> None:
    values = context.values
    options: dict[str, Any] = {"image": values["image"]}
    given = {
        "name": values["NAME"],
        "cpus": values["cpus"],
        "memory-mib": values["memory"],
        "disk-gib": values["disk"],
        "node": values["node"],
        "restart": values["restart"],
        "labels": dict(values["label"]),
        "virtual-network": values["network"],
        "vpn": values["vpn"],
        "public-ip": values["public-ip"],
        "init-script": _text_of(values["init-script"]) if values["init-script"] else None,
        "ssh-keys": [_text_of(path) for path in values["ssh-key"]],
        "groups": values["group"],
    }
    options |= {name: value for name, value in given.items() if value not in (None, False, [], {})}
    if values["no-autostart"]:
        options["autostart"] = False
    _work(context, "create-vm", options, values["NAME"] or "new VM")


def _work(context: Context, task: str, options: Mapping[str, Any], subject: str) -> None:
    node = context.values.get("node") or ""
    with suggesting(context, "vm", context.values.get("image") or subject):
        vm, elapsed_s = carry_out(context, "compute", task, options, subject=subject, kind="vm", node=node)
    if context.out.json:
        context.out.value(vm)
        return
    context.out.line(f"{vm['name']} ({vm['id']}) is {vm['phase']}, after {elapsed_s:.1f} s")
    if task == "create-vm" and vm["phase"] in ("ready", "running"):
        context.out.note(f"next: aetherscale vm console {vm['name']}")


def _list(context: Context) -> None:
    values = context.values
    options = {"all": values["all"], "labels": dict(values["label"])}
    vms = [item["vm"] for item in context.client.items("compute", "list-vms", options, node=values["node"] or "")]
    if context.out.json:
        context.out.value(vms)
    elif vms:
        show_vms(context.out, vms)
    else:
        context.out.note("no virtual machines; make one: aetherscale vm create web --image tiny")


def _show(context: Context) -> None:
    vm = info(context, "vm", context.values["NAME"])
    if context.out.json:
        context.out.value(vm)
    else:
        show_object(context.out, vm)


def _start(context: Context) -> None:
    _work(context, "start-vm", {"vm-id": context.values["NAME"]}, context.values["NAME"])


def _restart(context: Context) -> None:
    _work(context, "restart-vm", {"vm-id": context.values["NAME"]}, context.values["NAME"])


def _stop(context: Context) -> None:
    _work(context, "stop-vm", _ending(context), context.values["NAME"])


def _delete(context: Context) -> None:
    _work(context, "delete-vm", _ending(context), context.values["NAME"])


def _ending(context: Context) -> Mapping[str, Any]:
    options: dict[str, Any] = {"vm-id": context.values["NAME"], "kill": context.values["kill"]}
    if context.values["grace"] is not None:
        options["grace-s"] = context.values["grace"]
    return options


def _logs(context: Context) -> None:
    values = context.values
    options: dict[str, Any] = {"vm-id": values["NAME"], "follow": values["follow"]}
    if values["tail"] is not None:
        options["tail-bytes"] = values["tail"]
    chunks = context.client.ask("compute", "vm-logs", options, timeout_s=None)
    with closing(chunks), suggesting(context, "vm", values["NAME"]), suppress(KeyboardInterrupt):
        for chunk in chunks:
            if chunk["type"] != "item":
                continue
            if context.out.json:
                context.out.json_line({"text": chunk["text"]})
            else:
                context.out.raw(chunk["text"])


def _exec(context: Context) -> int:
    values = context.values
    timeout_s = values["timeout"]
    options = {"vm-id": values["NAME"], "command": values["COMMAND"], "timeout-s": timeout_s}
    with suggesting(context, "vm", values["NAME"]):
        ended = context.client.result("compute", "exec-vm", options, timeout_s=timeout_s + 10)
    if context.out.json:
        context.out.value({name: value for name, value in ended.items() if name != "type"})
    else:
        context.out.raw(ended["stdout"])
        context.out.raw_error(ended["stderr"])
        if ended["truncated"]:
            context.out.note("the output was longer; its end is left out")
    if ended["signal"] is not None:
        return SIGNAL_BASE + int(ended["signal"])
    return int(ended["exit-code"]) if ended["exit-code"] is not None else FAILED


def _wait(context: Context) -> None:
    from aetherscale.gateways.cli.waiting import wait_for

    vm = wait_for(context, context.values["NAME"], context.values["for"], context.values["timeout"])
    if context.out.json:
        context.out.value(vm)
    else:
        context.out.line(f"{vm['name']} ({vm['id']}) is {vm['phase']}")


def _console(context: Context) -> None:
    from aetherscale.gateways.cli.console import attach

    attach(context, context.values["NAME"], context.values["detach-key"])


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise bad_usage(f"{path} cannot be read: {reason}") from None


_NAME = Argument("NAME", "the name or id of the VM", completes="vm")
_LABEL = Option("label", "a label", "KEY=VALUE", label, many=True)
_ENDING = (
    Option("kill", "end it at once, without asking the guest"),
    Option("grace", "how long the guest has to shut down, like 30s; then it is ended", "TIME", seconds),
)
_LATER = "refused by this version, which does not have it yet"

VM = Group(
    "vm",
    "virtual machines",
    (
        Command(
            "create",
            "make a VM, start it, and wait until its guest is ready",
            _create,
            arguments=(Argument("NAME", "a name of your choice; one is made up if it is left out", required=False),),
            options=(
                Option("image", "the image that it boots from, by name or id", "IMAGE", completes="image", needed=True),
                Option("cpus", "virtual CPUs; 1 if not given", "N", number),
                Option("memory", "memory, like 512M or 2G; 512M if not given", "SIZE", mebibytes),
                Option(
                    "disk",
                    "size of the disk, like 10G; as large as the image, at least 10G if not given",
                    "SIZE",
                    gibibytes,
                ),
                Option(
                    "restart",
                    "what to do when it ends by itself; on-failure if not given",
                    "POLICY",
                    choices=("always", "on-failure", "never"),
                ),
                Option("no-autostart", "do not start it again after the host was rebooted"),
                _LABEL,
                Option("node", "the node to make it on", "NODE", completes="node"),
                *WAIT_OPTIONS,
                Option("network", _LATER, "NETWORK", many=True),
                Option("vpn", _LATER, "VPN", many=True),
                Option("public-ip", _LATER),
                Option("init-script", _LATER, "FILE", completes="file"),
                Option("ssh-key", _LATER, "FILE", many=True, completes="file"),
                Option("group", _LATER, "GROUP", many=True),
            ),
            examples=(
                "aetherscale vm create web --image tiny",
                "aetherscale vm create db --image debian-12 --cpus 2 --memory 2G --disk 20G --timeout 5m",
                "aetherscale vm create --image tiny --no-wait --json",
            ),
            details=(
                "Ready means that the guest itself said so. An image that has no way to say so counts as ready when it "
                "runs. A wait that runs out (exit status 5) is no failure: the VM goes on booting."
            ),
        ),
        Command(
            "list",
            "all VMs, by name",
            _list,
            options=(
                Option("all", "also deleted ones"),
                _LABEL,
                Option("node", "only those of one node", "NODE", completes="node"),
            ),
            examples=(
                "aetherscale vm list",
                "aetherscale vm list --all --json",
                "aetherscale vm list --label env=test",
            ),
        ),
        Command(
            "show",
            "everything that is known of a VM",
            _show,
            arguments=(_NAME,),
            examples=("aetherscale vm show web", "aetherscale vm show web --json"),
        ),
        Command(
            "start",
            "start a VM and wait until its guest is ready",
            _start,
            arguments=(_NAME,),
            options=WAIT_OPTIONS,
            examples=("aetherscale vm start web",),
            details="A VM that is being stopped starts again after that; one that runs already is left as it is.",
        ),
        Command(
            "stop",
            "ask the guest to shut down, and end it if it does not",
            _stop,
            arguments=(_NAME,),
            options=(*_ENDING, *WAIT_OPTIONS),
            examples=(
                "aetherscale vm stop web",
                "aetherscale vm stop web --grace 2m",
                "aetherscale vm stop web --kill",
            ),
        ),
        Command(
            "restart",
            "stop a VM and start it again",
            _restart,
            arguments=(_NAME,),
            options=WAIT_OPTIONS,
            examples=("aetherscale vm restart web",),
        ),
        Command(
            "delete",
            "delete a VM and its disk; a running one is stopped first",
            _delete,
            arguments=(_NAME,),
            options=(*_ENDING, *WAIT_OPTIONS),
            examples=("aetherscale vm delete web", "aetherscale vm delete web --kill"),
            details="Its events stay in the log: `aetherscale why vm web` and `replay --at` know it for ever.",
        ),
        Command(
            "console",
            "attach to the serial line of a VM",
            _console,
            arguments=(_NAME,),
            options=(Option("detach-key", "the key that leaves the console", "KEY", detach_key, default="ctrl-]"),),
            examples=("aetherscale vm console web", "echo uptime | aetherscale vm console web"),
            details=(
                "Several can attach at once: all see the same, and anyone may type. Without a terminal, stdin is typed "
                "into the line and its output goes to stdout, until the VM ends or Ctrl-C."
            ),
        ),
        Command(
            "logs",
            "what a VM wrote to its serial line",
            _logs,
            arguments=(_NAME,),
            options=(
                Option("follow", "go on with what comes, until the VM ends or Ctrl-C", short="f"),
                Option("tail", "only the last so many bytes", "BYTES", number),
            ),
            examples=("aetherscale vm logs web --tail 2000", "aetherscale vm logs web --follow"),
        ),
        Command(
            "exec",
            "run a program in the guest, through its agent",
            _exec,
            arguments=(_NAME, Argument("COMMAND", "the program and its arguments", rest=True)),
            options=(Option("timeout", "how long it may take, like 30s", "TIME", seconds, default="30s"),),
            examples=("aetherscale vm exec web -- uname -a", "aetherscale vm exec web --json -- sh -c 'exit 7'"),
            details=(
                "The exit status is the program's own, and 128 and the number of the signal where a signal ended it. "
                "Where it could not be run at all, the status is one of ours and stderr begins with `error:`; with "
                "--json the object on stdout has the status, and there is no object where it could not be run."
            ),
        ),
        Command(
            "wait",
            "wait until a VM is ready, or in another state",
            _wait,
            arguments=(_NAME,),
            options=(
                Option(
                    "for",
                    "what to wait for",
                    "STATE",
                    choices=("ready", "running", "stopped", "deleted"),
                    default="ready",
                ),
                WAIT_OPTIONS[1],
            ),
            examples=("aetherscale vm wait web", "aetherscale vm wait web --for stopped --timeout 5m"),
            details="Fails at once (exit status 1) where the state cannot come any more, e.g. ready after a failure.",
        ),
    ),
)
