"""Ends guests that a killed test run has left: VMs outlive their node by design, so nothing else would.

It is started with its standard input on a pipe of the test run's, and waits there until the run has ended, however.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def start(directory: Path) -> subprocess.Popen[bytes]:
    """Watch over processes that work below a directory; close its stdin to end them at once, then wait for it."""
    return subprocess.Popen([sys.executable, __file__, str(directory)], stdin=subprocess.PIPE, start_new_session=True)


def end_all(directory: Path) -> None:
    """Kill every process that works below a directory."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            pidfd = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        try:
            place = os.readlink(f"/proc/{entry.name}/cwd")
            if place.startswith(f"{directory.resolve()}/"):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            continue
        finally:
            os.close(pidfd)


if __name__ == "__main__":
    sys.stdin.read()
    end_all(Path(sys.argv[1]))
