"""`aetherscale-cli`: the flat verbs of the first version. They print JSON, and send its message.

That message makes a missing network on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.files import text_of
from aetherscale.gateways.cli.grammar import Command, Entry, Option
from aetherscale.gateways.cli.main import run
from aetherscale.gateways.cli.program import Program

NAME = "aetherscale-cli"
ABOUT = "The flat verbs of the first version; `aetherscale` has everything else. Prints JSON."
COMPONENT = "computing"
"""As the first version called it."""
WAIT_S = 120.0


def run_flat(words: Sequence[str], program: Program) -> int:
    """Run what was typed after the program's name; answers with the exit status."""
    return run(words, program, entries=ENTRIES, default="", name=NAME, about=ABOUT)


def _list(context: Context) -> None:
    chunks = list(context.client.first_version(COMPONENT, "list-vms", {}, timeout_s=WAIT_S, command=False))
    context.out.value([chunk["vm"] for chunk in chunks if chunk["type"] == "item"])


def _create(context: Context) -> None:
    values = context.values
    options: dict[str, Any] = {"image": values["image"]}
    if values["network"]:
        options["virtual-network"] = values["network"]
    if values["init-script"] is not None:
        options["init-script"] = text_of(values["init-script"], "--init-script")
    if values["vpn"] is not None:
        options["vpn"] = values["vpn"]
    _change(context, "create-vm", options)


def _start(context: Context) -> None:
    _change(context, "start-vm", {"vm-id": context.values["vm-id"]})


def _stop(context: Context) -> None:
    _change(context, "stop-vm", {"vm-id": context.values["vm-id"], "kill": context.values["kill"]})


def _delete(context: Context) -> None:
    _change(context, "delete-vm", {"vm-id": context.values["vm-id"]})


def _change(context: Context, task: str, options: Mapping[str, Any]) -> None:
    *_, last = context.client.first_version(COMPONENT, task, options, timeout_s=WAIT_S, command=True)
    context.out.value({"vm-id": last["vm-id"], "vm": last["vm"]})


_VM_ID = Option("vm-id", "the id or name of the VM", "VM", completes="vm", needed=True)

COMMANDS = (
    Command("list-vms", "all VMs", _list, examples=("aetherscale-cli list-vms",)),
    Command(
        "create-vm",
        "make a VM and start it",
        _create,
        options=(
            Option("image", "the image that it boots from", "IMAGE", completes="image", needed=True),
            Option(
                "network",
                "a network to be in, which is made if it is missing; may be given more than once",
                "NETWORK",
                many=True,
                completes="network",
            ),
            Option("init-script", "a script that the guest runs once, as root; - for stdin", "FILE", completes="file"),
            Option("vpn", "refused by this version, which does not have it yet", "VPN"),
            Option("no-public-ip", "without a public address, as every VM that is made here"),
        ),
        examples=("aetherscale-cli create-vm --image tiny", "aetherscale-cli create-vm --image tiny --network lab"),
    ),
    Command("start-vm", "start a VM", _start, options=(_VM_ID,), examples=("aetherscale-cli start-vm --vm-id web",)),
    Command(
        "stop-vm",
        "stop a VM",
        _stop,
        options=(_VM_ID, Option("kill", "end it at once, without asking the guest")),
        examples=("aetherscale-cli stop-vm --vm-id web",),
    ),
    Command(
        "delete-vm", "delete a VM", _delete, options=(_VM_ID,), examples=("aetherscale-cli delete-vm --vm-id web",)
    ),
)


def _this(command: Command) -> Command:
    return command


ENTRIES = tuple(Entry(command.name, command.summary, partial(_this, command)) for command in COMMANDS)
