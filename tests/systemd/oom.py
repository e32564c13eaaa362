"""`just oom`: a real kill for want of memory, on a Debian host of its own under emulation, and what is told of it.

A container shares the control groups of its host, which may have no memory controller of version 2. So a host is made
of Debian's packages (some minutes, the first time) and booted in QEMU; there `oominside.py` runs.
"""

from __future__ import annotations

import sys
from typing import Final

from tests.support import debian_host

PATIENCE_S: Final = 900.0


def main() -> int:
    """0 where the host says what it should."""
    if lacking := debian_host.lacking():
        print(f"oom: {lacking}")
        return 1
    command = [debian_host.PYTHON, "-m", "tests.systemd.oominside"]
    return int(debian_host.run(debian_host.RELEASES[0], command, PATIENCE_S) != 0)


if __name__ == "__main__":
    sys.exit(main())
