"""`vm`: the words of virtual machines."""

from __future__ import annotations

from aetherscale.gateways.cli import vm_tasks
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.values import detach_key, gibibytes, label, mebibytes, number, seconds
from aetherscale.gateways.cli.views import WIDE
from aetherscale.gateways.cli.work import WAIT_OPTIONS

_NAME = Argument("NAME", "the name or id of the VM", completes="vm")
_NAMES = Argument("NAME", "the name or id of the VM; several may be given", many=True, completes="vm")
_LABEL = Option("label", "a label", "KEY=VALUE", label, many=True)
_ENDING = (
    Option("kill", "end it at once, without asking the guest"),
    Option("grace", "how long the guest has to shut down, like 30s; then it is ended", "TIME", seconds),
)
_SINCE = "refused by this version: a serial line has no times in it"
_LATER = "refused by this version, which does not have it yet"

VM = Group(
    "vm",
    "virtual machines",
    (
        Command(
            "create",
            "make a VM, start it, and wait until its guest is ready",
            vm_tasks.create_vm,
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
            vm_tasks.list_vms,
            options=(
                Option("all", "also deleted ones"),
                WIDE,
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
            details="A VM that is being stopped starts again after that; one that runs already is left as it is.",
        ),
        Command(
            "stop",
            "ask the guest to shut down, and end it if it does not",
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
            details="Its events stay in the log: `aetherscale why vm web` and `replay --at` know it for ever.",
        ),
        Command(
            "console",
            "attach to the serial line of a VM",
            vm_tasks.console_vm,
            arguments=(_NAME,),
            options=(Option("detach-key", "the key that leaves the console", "KEY", detach_key, default="ctrl-]"),),
            examples=("aetherscale vm console web", "echo uptime | aetherscale vm console web"),
            details=(
                "Several can attach at once: all see the same, and anyone may type. Without a terminal, stdin is typed "
                "into the line and its output goes to stdout, until the guest has answered: it has said nothing for "
                "2 s after the end of stdin, or 30 s have gone by. Where nothing was typed (< /dev/null), it reads "
                "until the VM ends."
            ),
        ),
        Command(
            "logs",
            "what a VM wrote to its serial line",
            vm_tasks.logs_vm,
            arguments=(_NAME,),
            options=(
                Option("follow", "go on with what comes, until the VM ends or Ctrl-C", short="f"),
                Option("lines", "only the last so many lines", "N", number, short="n"),
                Option("tail", "only the last so many bytes; 64 KiB if neither is given", "BYTES", number),
                Option("since", _SINCE, "TIME"),
            ),
            examples=(
                "aetherscale vm logs web -n 20",
                "aetherscale vm logs web -f -n 0",
                "aetherscale vm logs web --tail 2000",
            ),
            details=(
                "What the guest wrote, byte for byte; on a terminal without what would drive the terminal. With --json "
                "it is text, in which each byte that is not UTF-8 is U+FFFD. The log holds the last 4 to 8 MiB."
            ),
        ),
        Command(
            "exec",
            "run a program in the guest, through its agent",
            vm_tasks.exec_vm,
            arguments=(_NAME, Argument("COMMAND", "the program and its arguments", rest=True)),
            options=(
                Option("timeout", "how long it may take, like 30s", "TIME", seconds, default="30s"),
                Option("interactive", "wait for stdin, also where it is a terminal", short="i"),
                Option("tty", "refused: an agent gives programs no terminal; use `vm console`", short="t"),
            ),
            examples=(
                "aetherscale vm exec web -- uname -a",
                "aetherscale vm exec web --json -- sh -c 'exit 7'",
                "tar c . | aetherscale vm exec web -- tar x -C /data",
            ),
            details=(
                "The exit status is the program's own, and 128 and the number of the signal where a signal ended it. "
                "Where it could not be run at all, the status is one of ours and stderr begins with `error:`; with "
                "--json the object on stdout has the status, and there is no object where it could not be run.\n\n"
                "What comes from stdin, where that is no terminal, is read to its end and then given to the program, "
                "at most 128 KiB. A stdin that says nothing for 2 s is left alone, unless -i asks for it. Nobody can "
                "talk to a program while it runs, and it has no terminal (-t is refused): the agent has no way for "
                "that. Its output is taken for UTF-8: each byte that is not is shown as U+FFFD, also with --json; let "
                "it print binary data as text (base64)."
            ),
        ),
        Command(
            "wait",
            "wait until a VM is ready, or in another state",
            vm_tasks.wait_vm,
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
