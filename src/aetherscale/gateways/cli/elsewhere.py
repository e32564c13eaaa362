"""Words that users of docker, incus, multipass, virsh and systemctl type, and their names here.

For hints alone: a second name would have to be kept for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

AT_THE_TOP: Final[Mapping[str, str]] = {
    "attach": "vm console",
    "console": "vm console",
    "cp": "vm exec",
    "create": "vm create",
    "define": "vm create",
    "delete": "vm delete",
    "destroy": "vm stop --kill",
    "dominfo": "vm show",
    "enter": "vm console",
    "exec": "vm exec",
    "find": "image list",
    "help": "--help",
    "images": "image list",
    "import": "image import",
    "info": "vm show",
    "init": "vm create",
    "inspect": "vm show",
    "instance": "vm",
    "instances": "vm list",
    "journal": "events list",
    "journalctl": "events tail",
    "kill": "vm stop --kill",
    "launch": "vm create",
    "list": "vm list",
    "login": "vm console",
    "logs": "vm logs",
    "ls": "vm list",
    "monitor": "events tail",
    "new": "vm create",
    "nodes": "node list",
    "ps": "vm list",
    "pull": "image import",
    "purge": "vm delete",
    "reboot": "vm restart",
    "remove": "vm delete",
    "reset": "vm restart",
    "restart": "vm restart",
    "rm": "vm delete",
    "rmi": "image delete",
    "run": "vm create",
    "setup": "host setup",
    "shell": "vm console",
    "show": "vm show",
    "shutdown": "vm stop",
    "ssh": "vm ssh",
    "start": "vm start",
    "state": "vm list",
    "stats": "vm list",
    "status": "vm list",
    "stop": "vm stop",
    "tail": "events tail",
    "top": "vm list",
    "undefine": "vm delete",
    "up": "serve",
    "verify": "log verify",
    "version": "--version",
    "virtual-machine": "vm",
    "vms": "vm list",
    "wait": "vm wait",
}
"""Words at the top, where ours are grouped."""

IN_A_GROUP: Final[Mapping[str, Sequence[str]]] = {
    "attach": ("console",),
    "cat": ("show", "export"),
    "check": ("verify",),
    "cp": ("exec",),
    "destroy": ("delete",),
    "dominfo": ("show",),
    "domstate": ("show",),
    "dump": ("export",),
    "enter": ("console",),
    "follow": ("tail",),
    "force-stop": ("stop --kill",),
    "get": ("show", "list"),
    "info": ("show",),
    "init": ("create",),
    "inspect": ("show",),
    "journal": ("logs",),
    "kill": ("stop --kill",),
    "launch": ("create",),
    "load": ("import",),
    "log": ("logs",),
    "login": ("console",),
    "ls": ("list",),
    "make": ("create", "build"),
    "new": ("create",),
    "ps": ("list",),
    "pull": ("import",),
    "purge": ("delete",),
    "reboot": ("restart",),
    "remove": ("delete", "remove"),
    "reset": ("restart",),
    "rm": ("delete",),
    "run": ("create",),
    "save": ("export",),
    "shell": ("console",),
    "shutdown": ("stop",),
    "state": ("show",),
    "status": ("show",),
    "stat": ("show", "info"),
    "top": ("list",),
    "undefine": ("delete",),
    "up": ("start",),
    "down": ("stop",),
    "install": ("setup",),
    "uninstall": ("remove",),
    "use": ("import",),
    "watch": ("tail",),
    "add": ("import", "create"),
}
"""Words in a group: the first of ours that the group has."""

FLAGS: Final[Mapping[str, Sequence[str]]] = {
    "-a": ("--all",),
    "-c": ("--cpus", "--config"),
    "-d": ("--no-wait", "--disk"),
    "-f": ("--kill", "--follow"),
    "-F": ("--follow",),
    "-i": ("--image",),
    "-j": ("--json",),
    "-l": ("--label", "--limit"),
    "-m": ("--memory",),
    "-n": ("--limit", "--tail", "--name", "NAME"),
    "-o": ("--json",),
    "-p": ("--publish",),
    "-q": ("--json",),
    "-t": ("--timeout", "--tail"),
    "-v": ("--version",),
    "-V": ("--version",),
    "--cpu": ("--cpus",),
    "--count": ("--limit",),
    "--detach": ("--no-wait",),
    "--disk-size": ("--disk",),
    "--dry": ("--dry-run",),
    "--filter": ("--label", "--type"),
    "--force": ("--kill",),
    "--format": ("--json",),
    "--from": ("--after",),
    "--hard": ("--kill",),
    "--lines": ("--tail", "--limit"),
    "--mem": ("--memory",),
    "--name": ("NAME",),
    "--no-trunc": ("--wide",),
    "--now": ("--kill",),
    "--output": ("--json",),
    "--ram": ("--memory",),
    "--server": ("--nats",),
    "--since": ("--after",),
    "--size": ("--disk",),
    "--tail": ("--limit",),
    "--url": ("--nats",),
    "--vcpus": ("--cpus",),
    "--wait": ("--timeout",),
}
"""Flags: the first of ours that the command has. In capitals: a word without a flag."""

NEEDLESS: Final = frozenset({"-y", "--yes", "--assume-yes", "--purge", "-it", "-ti", "--rm", "--quiet", "--no-prompt"})
"""Flags that ask for what is so anyway, or for what nothing here does."""


def command_for(word: str, where: Sequence[str], names: Sequence[str]) -> str:
    """The name of a word here, after the words that were typed before it; "" for an unknown one."""
    if not where:
        return AT_THE_TOP.get(word, "")
    return next((ours for ours in IN_A_GROUP.get(word, ()) if ours.partition(" ")[0] in names), "")


def flag_for(flag: str, flags: Sequence[str], arguments: Sequence[str]) -> str:
    """The hint for a flag that is not one of ours; "" where there is none."""
    for ours in FLAGS.get(flag, ()):
        if ours in flags:
            return f"did you mean: {ours}?"
        if ours in arguments:
            return f"the {ours} is a word of its own, without a flag"
    return "leave it out: nothing here asks" if flag in NEEDLESS else ""
