"""`just oom`: a real kill for want of memory, in a Debian of its own under emulation, and what is told of it.

A container shares the control groups of its host, which may have no memory controller of version 2. So a host is made
of Debian's packages (some minutes, the first time) and booted in QEMU; there `oominside.py` runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.support.node import ROOT
from tests.systemd.oominside import WELL

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aetherscale" / "oom"
PACKAGES: Final = "linux-image-cloud-amd64,systemd-sysv,dbus,python3,initramfs-tools"
BOOT_S: Final = 900
UNIT: Final = """[Unit]
Description=What is told of a kill for want of memory
[Service]
Type=oneshot
Environment=PYTHONPATH=/opt/aetherscale
WorkingDirectory=/opt/aetherscale
ExecStart=/usr/bin/python3 oominside.py
ExecStopPost=/bin/systemctl poweroff
StandardOutput=journal+console
StandardError=journal+console
"""


def main() -> int:
    """Make the host, boot it, and look for what it says; 1 where it says something else."""
    missing = [name for name in ("mmdebstrap", "mke2fs", "qemu-system-x86_64") if shutil.which(name) is None]
    if missing:
        print(f"{', '.join(missing)}: not installed; apt install mmdebstrap e2fsprogs qemu-system-x86")
        return 1
    CACHE.mkdir(parents=True, exist_ok=True)
    tree = CACHE / "host"
    if not (tree / "sbin/init").exists():
        making = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(tree)]
        subprocess.run(making, check=True)
    furnish(tree)
    disk = CACHE / "host.img"
    disk.unlink(missing_ok=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(disk), "2G"], check=True)
    said = booted(tree, disk)
    print("\n".join(line for line in said.splitlines() if "signal " in line or WELL in line or "Error" in line))
    return 0 if WELL in said else 1


def furnish(tree: Path) -> None:
    """Put this project into the host, and have it run at the boot."""
    place = tree / "opt/aetherscale"
    shutil.rmtree(place, ignore_errors=True)
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src/aetherscale", place / "aetherscale", ignore=skipped)
    shutil.copytree(Path(msgspec.__file__).parent, place / "msgspec", ignore=skipped)
    shutil.copy(ROOT / "tests/systemd/oominside.py", place)
    (tree / "etc/systemd/system/oom.service").write_text(UNIT)
    wants = tree / "etc/systemd/system/multi-user.target.wants/oom.service"
    wants.parent.mkdir(parents=True, exist_ok=True)
    wants.unlink(missing_ok=True)
    wants.symlink_to("/etc/systemd/system/oom.service")


def booted(tree: Path, disk: Path) -> str:
    """What the host says on its serial line, up to its end."""
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (initrd,) = (tree / "boot").glob("initrd.img-*")
    command = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "2048", "-smp", "2", "-nodefaults", "-no-reboot"),
        *("-display", "none", "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd)),
        *("-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
    ]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=BOOT_S, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
