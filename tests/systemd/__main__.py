"""`just systemd`: boot a systemd in a container of this machine's own programs, and run there what needs one.

Nothing of the machine is changed: the container has its own root in memory, and a network of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.support.node import ROOT

SUITES: Final = (
    "tests/contract/test_supervisor.py",
    "tests/systemd/inside.py",
    "tests/systemd/networks.py",
    "tests/systemd/switches.py",
)
REBOOTS: Final = "tests/systemd/bridge.py"
"""A suite that boots containers itself."""
PATIENCE_S: Final = 60.0
SOURCE: Final = "/srv/aetherscale"
"""Where the container has this project for everybody."""


def main(arguments: Sequence[str]) -> int:
    """Run the suites inside; their exit status."""
    missing = [name for name in ("systemd-nspawn", "nsenter", "dbus-daemon") if shutil.which(name) is None]
    if missing:
        print(f"{', '.join(missing)}: not installed; apt install systemd systemd-container dbus util-linux")
        return 1
    with booted() as leader:
        inside = [*entering(leader), f"--wdns={ROOT}"]
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or SUITES)]
        status = subprocess.run([*inside, *tests], check=False).returncode
    if not arguments:
        reboots = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", REBOOTS]
        status = status or subprocess.run(reboots, cwd=ROOT, check=False).returncode
    return status


def entering(leader: int) -> list[str]:
    """Words that begin a command inside of a container, in the control groups of its systemd too.

    What is in others is nowhere, as the container sees it, and its logind serves nobody who is nowhere.
    """
    places = []
    for line in Path(f"/proc/{leader}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        names = ("unified", "") if not controllers else ("systemd",) if controllers == "name=systemd" else ()
        files = [Path("/sys/fs/cgroup", name, path[1:], "cgroup.procs") for name in names]
        places += [file for file in files if file.exists()][:1]
    joins = "".join(f"echo $$ > {place}; " for place in places)
    return ["sh", "-euc", f'{joins}exec "$@"', "sh", "nsenter", "--target", str(leader), "--all"]


def _of_this_machine() -> list[str]:
    python = Path(sys.base_prefix).resolve()
    places = [f"--bind={ROOT}", f"--bind-ro={ROOT}:{SOURCE}"]
    if not python.is_relative_to("/usr"):
        places.append(f"--bind-ro={python}")
    return ["--directory=/", "--volatile=yes", "--private-network", "--overlay=/usr/local::/usr/local", *places]


def hear(told: socket.socket) -> None:
    """Take in what comes until the socket is shut."""
    with suppress(OSError):
        while told.recv(4096):
            pass


@contextmanager
def of_its_own() -> Iterator[list[str]]:
    """Words that begin a command in control groups of its own, where no systemd runs this machine.

    Elsewhere its systemd keeps containers apart. Here two of them would take one another's units for their own.
    """
    roots = [Path("/sys/fs/cgroup", name) for name in ("", "systemd", "unified")]
    made = [root / f"aetherscale-test-{os.getpid()}" for root in roots if (root / "cgroup.procs").exists()]
    if Path("/run/systemd/system").is_dir():
        made = []
    for group in made:
        group.mkdir()
    joins = "".join(f"echo $$ > {group}/cgroup.procs; " for group in made)
    try:
        yield ["sh", "-euc", f'{joins}exec "$@"', "sh"]
    finally:
        for group in made:
            for place, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(place)


@contextmanager
def booted(*options: str) -> Iterator[int]:
    """A container in which systemd has come up; the pid of its systemd.

    Without options its programs are this machine's, its own root is in memory, and it has no network.
    """
    command = [
        *("systemd-nspawn", "--register=no", "--keep-unit", "--console=pipe", "--capability=CAP_NET_ADMIN"),
        *("--bind=/dev/net/tun", "--notify-ready=yes", "--boot", *(options or _of_this_machine())),
    ]
    with (
        of_its_own() as first,
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        told.bind(f"{directory}/notify")
        told.settimeout(PATIENCE_S)
        environment = {**os.environ, "NOTIFY_SOCKET": f"{directory}/notify"}
        with subprocess.Popen(
            [*first, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
        ) as container:
            leader = 0
            try:
                while b"READY=1" not in told.recv(4096).split(b"\n"):
                    pass
                # It goes on telling of its jobs, and stands still for good where nobody hears it.
                told.settimeout(None)
                threading.Thread(target=hear, args=(told,), daemon=True).start()
                children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
                leader = int(children[0])
                yield leader
            finally:
                power_off(leader, container)
                told.shutdown(socket.SHUT_RD)


def power_off(leader: int, container: subprocess.Popen[bytes]) -> None:
    """End a container, which lives on where its systemd-nspawn alone is ended: so its systemd is told."""
    if leader:
        pidfd = os.pidfd_open(leader)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGRTMIN + 4)
        try:
            container.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    else:
        container.kill()
    container.wait(PATIENCE_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
