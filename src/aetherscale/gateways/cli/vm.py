"""`vm`: the words of virtual machines."""

from __future__ import annotations

from aetherscale.gateways.cli import vm_ports, vm_tasks
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.values import (
    number,
    seconds,
)
from aetherscale.gateways.cli.views import WIDE
from aetherscale.gateways.cli.vm_create import ALLOW_ADDRESS, CREATE, LABEL
from aetherscale.gateways.cli.vm_inside import COPY, DETACH_KEY, EXEC, SSH
from aetherscale.gateways.cli.work import WAIT_OPTIONS

_NAME = Argument("NAME", "the name or id of the VM", completes="vm")
_NAMES = Argument("NAME", "the name or id of the VM; several may be given", many=True, completes="vm")
_ENDING = (
    Option("kill", "end it at once, without asking the guest to shut down"),
    Option("grace", "how long the guest has to shut down before it is ended, like 30s", "TIME", seconds),
)
_VM = Argument("VM", "the name or id of the VM", completes="vm")
_NETWORK = Argument("NETWORK", "the name or id of the network", completes="network")

VM = Group(
    "vm",
    "virtual machines",
    (
        CREATE,
        Command(
            "list",
            "list all VMs, sorted by name",
            vm_tasks.list_vms,
            options=(
                Option("all", "include deleted VMs"),
                WIDE,
                LABEL,
                Option("node", "only VMs on this node", "NODE", completes="node"),
            ),
            examples=(
                "aetherscale vm list",
                "aetherscale vm list --all --json",
                "aetherscale vm list --label env=test",
            ),
        ),
        Command(
            "show",
            "show all details of a VM",
            vm_tasks.show_vm,
            arguments=(_NAME,),
            examples=("aetherscale vm show web", "aetherscale vm show web --json"),
        ),
        Command(
            "start",
            "start a VM and wait until its guest is ready",
            vm_tasks.start_vm,
            arguments=(_NAMES,),
            options=WAIT_OPTIONS,
            examples=("aetherscale vm start web", "aetherscale vm start web db"),
            details="A VM that is being stopped is started again afterwards. A VM that already runs is left as it is.",
        ),
        Command(
            "stop",
            "shut down the guest, and end it if it does not comply in time",
            vm_tasks.stop_vm,
            arguments=(_NAMES,),
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
            vm_tasks.restart_vm,
            arguments=(_NAMES,),
            options=WAIT_OPTIONS,
            examples=("aetherscale vm restart web",),
        ),
        Command(
            "delete",
            "delete a VM and its disk; a running one is stopped first",
            vm_tasks.delete_vm,
            arguments=(_NAMES,),
            options=(*_ENDING, *WAIT_OPTIONS),
            examples=("aetherscale vm delete web", "aetherscale vm delete web db --kill"),
            details=(
                "A guest has 30 s to shut down; one that has not said that it is ready, as one that does not boot, has "
                "5 s. --grace says otherwise.\n\nIts events stay in the log: `aetherscale why vm web` and `replay "
                "--at` still show it."
            ),
        ),
        Command(
            "attach",
            "give a VM a port in one more network, while it runs or is stopped",
            vm_ports.attach_vm,
            arguments=(_VM, _NETWORK),
            options=(ALLOW_ADDRESS, *WAIT_OPTIONS),
            examples=("aetherscale vm attach web backup",),
            details=(
                "The port has its addresses at once, and until the VM is detached. A VM that runs has four slots for "
                "cards that it is given meanwhile; a restart makes room. A VM that was created without a network takes "
                "none. Ports on VDE switches are chosen when a VM is created, and stay."
            ),
        ),
        Command(
            "detach",
            "take a VM's port in a network away, while it runs or is stopped",
            vm_ports.detach_vm,
            arguments=(_VM, _NETWORK),
            options=WAIT_OPTIONS,
            examples=("aetherscale vm detach web backup",),
            details=(
                "The guest is asked to let go of the card. One that has not done so after 10 s has it without a "
                "cable, and its slot is free again once the VM is restarted. The last port of a VM stays."
            ),
        ),
        Command(
            "console",
            "attach to the serial console of a VM",
            vm_tasks.console_vm,
            arguments=(_NAME,),
            options=(
                DETACH_KEY,
                Option("tail", "how many bytes of before are shown first; 64 KiB if not given", "BYTES", number),
            ),
            examples=(
                "aetherscale vm console web",
                "aetherscale vm console web --tail 0",
                "echo uptime | aetherscale vm console web",
            ),
            details=(
                "Several people can attach at once: all see the same output, and all can type. What the guest has "
                "written since it was started is shown first, up to --tail (at most 1 MiB); `vm logs` has more.\n\n"
                "Without a terminal, stdin is sent to the guest and its output goes to stdout. After the end of stdin "
                "the command waits for the answer: until the guest has been silent for 2 s, and for at most 30 s. If "
                "stdin is empty (< /dev/null), it reads until the VM ends."
            ),
        ),
        Command(
            "logs",
            "show what a VM has written to its serial console",
            vm_tasks.logs_vm,
            arguments=(_NAME,),
            options=(
                Option("follow", "follow new output until the VM ends or Ctrl-C", short="f"),
                Option("lines", "only the last N lines", "N", number, short="n"),
                Option("tail", "only the last BYTES bytes; 64 KiB, unless -n or --since is given", "BYTES", number),
                Option("since", "only what came since then: 5m, yesterday, 16:00, 2026-11-28, RFC 3339", "TIME"),
            ),
            examples=(
                "aetherscale vm logs web -n 20",
                "aetherscale vm logs web -f -n 0",
                "aetherscale vm logs web --since 5m",
                "aetherscale vm logs web --tail 2000",
            ),
            details=(
                "The output is what the guest wrote, byte for byte. On a terminal, control sequences are left out. "
                "With --json it is text, and each byte that is not UTF-8 becomes U+FFFD. The last 4 to 8 MiB are kept."
                "\n\n"
                "A time like 5m counts back by the node's clock. --since shows whole lines, and may begin up to a "
                "second early. It begins earlier, never later, in old parts of a log that a VM wrote without a pause, "
                "and where the clock was set back."
            ),
        ),
        EXEC,
        COPY,
        SSH,
        Command(
            "wait",
            "wait until a VM is ready, or in another state",
            vm_tasks.wait_vm,
            arguments=(_NAME,),
            options=(
                Option(
                    "for",
                    "the state to wait for",
                    "STATE",
                    choices=("ready", "init", "running", "address", "stopped", "deleted"),
                    default="ready",
                ),
                WAIT_OPTIONS[1],
            ),
            examples=("aetherscale vm wait web", "aetherscale vm wait web --for stopped --timeout 5m"),
            details=(
                "Fails at once (exit status 1) if the state cannot be reached, e.g. ready after a failure. `init` is "
                "the end of the init script; it fails where that is not a good one.\n\n"
                "A VM has an `address` when its guest says, by its agent, that it has one of those that its ports are "
                "given; of user-mode networking, any that is not link-local. Without an agent it is what the ports are "
                "given."
            ),
        ),
    ),
)
