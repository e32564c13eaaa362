"""The words of `vm` for what is inside of a guest: programs, files, a login."""

from __future__ import annotations

from aetherscale.gateways.cli import vm_exec, vm_tasks
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.grammar import Argument, Command, Option
from aetherscale.gateways.cli.values import detach_key, seconds, user_name

_NAME = Argument("NAME", "the name or id of the VM", completes="vm")
DETACH_KEY = Option("detach-key", "the key that detaches", "KEY", detach_key, default="ctrl-]")


def _copy(context: Context) -> None:
    """Copy one file."""
    # Here, since few commands need what it takes.
    from aetherscale.gateways.cli import vm_copy

    vm_copy.copy(context)


COPY = Command(
    "copy",
    "copy a file into a guest, or out of one",
    _copy,
    arguments=(
        Argument("SOURCE", "the file, or NAME:/path", completes="file"),
        Argument("TARGET", "where it comes to: NAME:/path, or a file or directory here", completes="file"),
    ),
    options=(Option("force", "replace a file that is there"),),
    examples=(
        "aetherscale vm copy notes.txt web:/root/",
        "aetherscale vm copy web:/etc/os-release .",
        "aetherscale vm copy --force notes.txt web:/root/notes.txt",
    ),
    details=(
        "The path in the guest begins with a slash. In a directory, the file keeps its name. Its permissions are kept, "
        "but for setuid, setgid and sticky; in the guest it belongs to root. Symbolic links are followed where a file "
        "is read, and replaced (--force) where one is written. One file is copied at a time: for directories, use tar "
        "with `vm exec`.\n\n"
        "A copy is whole or not there: its SHA-256 is compared before it comes to its place. Until then it is beside "
        "it, as .NAME.….part; the same command goes on where an interrupted one was. Where the target is full, that is "
        "removed. Files of /proc and /sys have no size and change as they are read: out of a guest they come without "
        "that comparison, at most 64 MiB. A file here whose name has a colon is typed with ./ before it. The guest "
        "needs its agent, sh, dd and setsid; no network."
    ),
)

EXEC = Command(
    "exec",
    "run a program in the guest, through the QEMU guest agent",
    vm_exec.exec_vm,
    arguments=(_NAME, Argument("COMMAND", "the program and its arguments", rest=True)),
    options=(
        Option("timeout", "how long the program may take, like 5m", "TIME", seconds),
        Option("interactive", "pass stdin on, even from a terminal", short="i"),
        Option("tty", "give the program this terminal, and whatever is typed", short="t"),
        DETACH_KEY,
    ),
    examples=(
        "aetherscale vm exec web -- uname -a",
        "aetherscale vm exec -it web -- sh",
        "aetherscale vm exec web --json -- sh -c 'exit 7'",
        "tar c . | aetherscale vm exec web -- tar x -C /data",
    ),
    details=(
        "The exit status is that of the program, or 128 plus the number of the signal that ended it; 127 if the "
        "guest has no such program, 126 if it is not executable, 124 if the time (--timeout) was over and the "
        "program was ended. Otherwise it is one of aetherscale's own, 1 to 5: 5 if the time was over and the program "
        "continues, or may. A program may return each of these, too: if it is not the program's, stderr has a line "
        "that begins with `error:`. With --json, stdout has an object with the status, and none if the program "
        "could not be run.\n\n"
        "Output is shown as it comes, byte for byte; on a terminal, control sequences are left out. stdin is "
        "passed on as it comes, unless it is a terminal; -i passes that on, too. A slow reader holds up the "
        "program.\n\n"
        "Ctrl-C goes to the program. A second Ctrl-C, --timeout, or the end of this command hangs up on it "
        "(SIGHUP); the command says so if it continues in spite of that, as which process, and how to end "
        "it.\n\n"
        "With -t, the program has a terminal in the guest, of the size of this one, until it ends. Every key "
        "goes to the program, also Ctrl-C, except the one that detaches. That key, or closing this terminal, "
        "hangs up on the program. stdin must be a terminal; --json and --timeout are refused. The guest needs "
        "`script` of util-linux and `stty`.\n\n"
        "With --json, and in a guest without `sh` or `setsid`, the guest agent alone runs the program. Its "
        "input is read whole before it begins, at most 128 KiB; if stdin sends nothing for 2 s, it is ignored, "
        "unless -i is given. The output comes when it has ended, as UTF-8: every other byte is U+FFFD. Where "
        "--timeout (30s) is over sooner, the status is 5, the program continues in the guest, and what it has "
        "printed is lost."
    ),
)

SSH = Command(
    "ssh",
    "log in to a guest by SSH, or run a program in it",
    vm_tasks.ssh_vm,
    arguments=(
        _NAME,
        Argument("COMMAND", "the program and its arguments; a shell if not given", required=False, rest=True),
    ),
    options=(
        Option("user", "the user in the guest; if not given, that of vm create, or root", "USER", user_name),
        Option("identity", "the private key; those of ssh if not given", "FILE", completes="file", short="i"),
        Option("timeout", "how long to wait for sshd in the guest", "TIME", seconds, "1m"),
    ),
    examples=("aetherscale vm ssh web", "aetherscale vm ssh web -- systemctl status"),
    details=(
        "It runs this host's ssh with the address of the guest, and with the keys of the guest's host, which "
        "its guest agent tells: nothing is asked, and no known_hosts is read or written. A VM has an address "
        "that leads to it in a network of the kind nat, on the public bridge, or with `--publish 2222:22`, if "
        "a group that it bears lets TCP 22 in. Otherwise the session goes through the guest agent, without a "
        "network: an sshd is started for it in the guest.\n\n"
        "`vm create --ssh-key` has given the key. As with ssh, the words of a command are joined with spaces "
        "and read by a shell in the guest. The exit status is that of ssh: the program's, or 255."
    ),
)
