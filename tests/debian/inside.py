"""What is run on a Debian host of its own: what it is, what `doctor` finds, and the suites of networks.

    python -m tests.debian.inside [--br-netfilter] [ARGUMENT…]

Arguments are pytest's, and `--br-netfilter` loads that first. Without any it is the matrix: all whose guests are fake;
then, beside br_netfilter, what passes bridges; then the service in its sandbox, which may load no module.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.node import ROOT

LOADED: Final = "--br-netfilter"
SUITES: Final = "tests/integration/test_network_*.py"
WITH_QEMU: Final = tuple(
    f"tests/integration/test_network_{name}.py" for name in ("guests", "public_guests", "hot_ports")
)
"""Those whose guests are built of packages, which that host has no way to."""
OTHERS: Final = ("tests/contract/test_network_driver.py", "tests/integration/test_host_forwarding.py")
BESIDE: Final = (
    "contract/test_network_driver",
    *(f"integration/test_network_{name}" for name in ("links", "rules", "flows")),
)
SERVICE: Final = "tests/systemd/networks.py"
OPTIONS: Final = ("-q", "--color=no", "--durations=5", "-o", "timeout=1800")
AT_ONCE: Final = ("-n", "2", "--dist", "worksteal")
OF_BRIDGES: Final = ("nf_conntrack_bridge", "nft_reject_bridge", "nft_meta_bridge")


def main(arguments: Sequence[str]) -> int:
    """1 where a suite failed."""
    print(f"Linux {platform.release()}, {said('nft', '--version')}, Python {platform.python_version()}", flush=True)
    subprocess.run(["modprobe", "--dry-run", "--all", *OF_BRIDGES], check=True)  # they are loaded when they are needed
    subprocess.run([sys.executable, "-m", "aetherscale", "doctor"], check=False)
    if arguments:
        if LOADED in arguments:
            subprocess.run(["modprobe", "br_netfilter"], check=True)
        return tested(*(word for word in arguments if word != LOADED))
    suites = sorted(str(path.relative_to(ROOT)) for path in Path(ROOT).glob(SUITES))
    failed = tested(*AT_ONCE, *OTHERS, *(suite for suite in suites if suite not in WITH_QEMU))
    subprocess.run(["modprobe", "br_netfilter"], check=True)
    failed |= tested(*AT_ONCE, *(f"tests/{name}.py" for name in BESIDE))
    return failed | tested(SERVICE)


def tested(*arguments: str) -> int:
    """1 where pytest ended otherwise than well."""
    command = [sys.executable, "-m", "pytest", *OPTIONS, *arguments]
    return int(subprocess.run(command, check=False).returncode != 0)


def said(*command: str) -> str:
    """What a program prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
