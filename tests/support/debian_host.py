"""A Debian of its own under emulation, for what the kernel of this machine lacks, and a command that runs there.

The tree of a release is made of Debian's packages, with a virtual environment of this project's Python packages, and is
kept in the user's cache: some minutes, the first time. A disk is made of it without mounts or loop devices, and booted
by QEMU with the release's own kernel. The host has no network; it runs one command as root, and goes down.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.support.node import ROOT

RELEASES: Final = ("bookworm", "trixie")
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aetherscale" / "debian"
CHECKOUT: Final = "/srv/aetherscale"
PYTHON: Final = f"{CHECKOUT}/.venv/bin/python"
AUTHORITIES: Final = "etc/ssl/certs/ca-certificates.crt"
PIP_CONF: Final = "etc/pip.conf"
RESOLV_CONF: Final = "etc/resolv.conf"

_PACKAGES: Final = (
    *("linux-image-cloud-amd64", "initramfs-tools", "systemd-sysv", "dbus", "udev", "kmod", "procps"),
    *("python3", "python3-venv", "ca-certificates", "iproute2", "nftables", "dnsmasq-base"),
    *("libpam-systemd", "qemu-system-x86"),  # of the service
)
_OF_PYTHON: Final = (".[uvloop]", "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "hypothesis")
_BUILDING: Final = ("hatchling", "editables", "setuptools", "wheel")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDED: Final = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-system-x86_64": "qemu-system-x86"}
_DISK: Final = "4G"
_ENDED: Final = "aetherscale-command-ended-with"
_UNTIMED: Final = "no_timer_check"
"""Where the timer does not tick while the kernel waits for it, as beside load, the kernel gives up at its boot."""
_UNIT: Final = f"""[Unit]
Description=What this host was made for
[Service]
Type=oneshot
Environment=PATH={CHECKOUT}/.venv/bin:{_PATH} HOME=/root
WorkingDirectory={CHECKOUT}
ExecStart=/bin/sh /opt/command
ExecStopPost=/bin/systemctl poweroff
StandardOutput=file:/dev/ttyS1
StandardError=inherit
"""


def lacking() -> str:
    """What this machine lacks for such a host; "" for nothing."""
    packages = sorted(package for program, package in _NEEDED.items() if shutil.which(program) is None)
    if packages:
        return f"not installed: apt-get install {' '.join(packages)}"
    return "" if os.geteuid() == 0 else "only root makes a Debian of packages"


def run(release: str, command: Sequence[str], patience_s: float) -> int | None:
    """Boot the release and run the command in the checkout there, printing what it prints; its exit status.

    None where the host ended, or was ended after `patience_s`, before the command did.
    """
    with _alone():
        tree = _tree(release)
        _furnish(tree, command)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            disk, console = Path(directory, "disk"), Path(directory, "console")
            making = ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(disk), _DISK]
            subprocess.run(making, stdout=subprocess.DEVNULL, check=True)
            status = _booted(tree, disk, console, patience_s)
            if status is None:
                print("\n".join(["The console's end:", *console.read_text(errors="replace").splitlines()[-40:]]))
            return status


def copy_checkout(to: Path) -> None:
    """The files of this checkout, without those that git ignores."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


@contextmanager
def _alone() -> Iterator[None]:
    """Hosts are made and run one after the other: they share the trees, and each takes 2 GiB of memory."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tree(release: str) -> Path:
    """The tree of a release, made anew where the packages are not those that it was made of."""
    tree, stamp = CACHE / release, CACHE / f"{release}.stamp"
    pins = (ROOT / "constraints.txt").read_text()
    wanted = "\n".join([*_PACKAGES, *_OF_PYTHON, *_BUILDING, (ROOT / "pyproject.toml").read_text(), pins])
    if not stamp.exists() or stamp.read_text() != wanted:
        stamp.unlink(missing_ok=True)
        shutil.rmtree(tree, ignore_errors=True)
        print(f"making {tree} of Debian's packages", flush=True)
        making = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}", release, str(tree)]
        subprocess.run(making, check=True)
        _install(tree)
        stamp.write_text(wanted)
    return tree


def _install(tree: Path) -> None:
    """A virtual environment in the tree. Its pip is set as this machine's, for as long as it runs."""
    copy_checkout(tree / CHECKOUT[1:])
    for name in (AUTHORITIES, PIP_CONF, RESOLV_CONF):
        with suppress(FileNotFoundError):
            shutil.copy(Path("/", name), tree / name)
    settings = [f"{name}={value}" for name, value in os.environ.items() if name in ("PIP_CERT", "PIP_DEFAULT_TIMEOUT")]
    inside = ["chroot", str(tree), "env", "-i", "-C", CHECKOUT, f"PATH={_PATH}", "HOME=/root", *settings]
    pip = [PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-cache-dir"]
    pinned = ["--constraint", "constraints.txt"]
    for words in (
        ["python3", "-m", "venv", str(Path(PYTHON).parents[1])],
        [*pip, *pinned, *_BUILDING],
        [*pip, *pinned, "--no-build-isolation", "--editable", *_OF_PYTHON],
    ):
        subprocess.run([*inside, *words], check=True)
    for name in (PIP_CONF, RESOLV_CONF):
        (tree / name).unlink(missing_ok=True)


def _furnish(tree: Path, command: Sequence[str]) -> None:
    """Put this checkout into the tree as it is now, and have the command run at the boot."""
    place = tree / CHECKOUT[1:]
    for each in place.iterdir():
        if each.name != ".venv":
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    copy_checkout(place)
    subprocess.run(["chroot", tree, PYTHON, "-m", "compileall", "-q", f"{CHECKOUT}/src"], check=True)
    (tree / "opt/command").write_text(f"{shlex.join(command)}\necho {_ENDED} $?\n")
    units = tree / "etc/systemd/system"
    (units / "command.service").write_text(_UNIT)
    wants = units / "multi-user.target.wants/command.service"
    wants.parent.mkdir(parents=True, exist_ok=True)
    wants.unlink(missing_ok=True)
    wants.symlink_to("../command.service")


def _booted(tree: Path, disk: Path, console: Path, patience_s: float) -> int | None:
    """Print what comes from the second serial line up to the host's end; the status of the command."""
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (initrd,) = (tree / "boot").glob("initrd.img-*")
    qemu = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "2048", "-smp", "2", "-nodefaults", "-no-reboot"),
        *("-display", "none", "-serial", f"file:{console}", "-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(initrd)),
        *("-append", f"root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 mitigations=off panic=-1 {_UNTIMED}"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
    ]
    status = None
    with subprocess.Popen(qemu, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as host:
        patience = threading.Timer(patience_s, host.kill)
        patience.start()
        try:
            assert host.stdout is not None
            for line in host.stdout:
                words = line.decode(errors="replace").rstrip()
                if words.startswith(_ENDED):
                    status = int(words.split()[1])
                else:
                    print(words, flush=True)
        finally:
            patience.cancel()
            host.kill()
    return status
