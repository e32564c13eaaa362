"""`just readme-service`: the section "As a service" of README.md, word by word, on bare Debian hosts; and between its
blocks the pages of docs/runbook.md that a service has: log in, back up, restore, upgrade, uninstall.

    python -m tests.systemd.readme [SUITE…] [--root SUITE=FILE.tar]

Makes a minimal Debian with systemd of each suite by mmdebstrap (or of a tar of one), boots it in a container, and types
there what README.md says, line by line, as the user that the first line of each block names. What comes of it is looked
at: who may use the node and who may not, a ready guest, an upgrade that leaves it alone, and a removal that leaves
nothing. The container shares this machine's network, for packages; nothing of it is set up in there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from aetherscale import __version__
from tests.support.debian_host import copy_checkout
from tests.support.node import ROOT
from tests.systemd.__main__ import booted, entering

SUITES: Final = ("trixie", "bookworm")
BARE: Final = "systemd-sysv,dbus,libpam-systemd,python3,ca-certificates"
"""What each installed Debian has, and a minimal one of mmdebstrap has not."""
CHECKOUT: Final = "/root/aetherscale"
AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
PIP: Final = Path("/etc/pip.conf")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEWER: Final = "0.1.99"
NOT_OURS: Final = re.compile(
    # apt, dpkg, Python's caches, logs, what a boot writes, and the homes of alice and bob.
    r"/(?:proc|sys|dev|tmp|run/(?!aetherscale|user/|systemd/users/)[^/]+|run/(?:user|systemd/users)/1\d\d\d|root|home|opt|var/(?:lib/(?:apt|dpkg|pam|systemd(?!/linger)|private|ucf)"
    r"|cache|log|tmp|backups|mail)|etc/(?:ld\.so\.cache|machine-id|\.pwd\.lock|ssl|alternatives|apt|rc\d\.d|init\.d)"
    r"|usr/(?:lib|share|bin|sbin|libexec)(?!/systemd/system/aether))(?:/|$)|.*/__pycache__(?:/|$)"
    r"|/etc/(?:passwd|group|shadow|gshadow|subuid|subgid)-?$"
)
KNOWN_USERS: Final = "/run/systemd/users"
Block = tuple[str, list[str]]


def main(arguments: Sequence[str]) -> int:
    """Go through the section on each suite; 0 where it holds on all."""
    missing = [name for name in ("systemd-nspawn", "nsenter", "mmdebstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print(f"readme-service: needs root and {', '.join(missing) or 'nothing else'}; apt-get install")
        return 1
    tars = dict(word.removeprefix("--root=").split("=", 1) for word in arguments if word.startswith("--root="))
    for suite in [word for word in arguments if not word.startswith("--")] or SUITES:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"aetherscale-{suite}-", ignore_cleanup_errors=True) as directory:
            root = Path(directory, "root")
            make(root, suite, tars.get(suite))
            with booted(*options(root)) as leader:
                Host(leader).follow(blocks((ROOT / "README.md").read_text()))
        print(f"{suite}: the section holds, word by word ({time.monotonic() - begun:.0f} s)", flush=True)
    return 0


def blocks(text: str) -> list[Block]:
    """Who is to type what: the blocks of the section, each a user and the lines."""
    section = text.partition("\n## As a service\n")[2].partition("\n## ")[0]
    found = re.findall(r"```sh\n# as (\w+)\n(.*?)```", section, re.DOTALL)
    assert [user for user, _ in found] == ["root", "alice", "root", "root"], "install, use, upgrade, remove"
    assert len(found) == section.count("```sh"), "each block says whose it is"
    return [(user, lines.splitlines()) for user, lines in found]


def pages(text: str) -> dict[str, list[str]]:
    """The lines that a page of the runbook has for the service, without what the block says of itself."""
    found = {}
    for page in ("Log in to a VM", "Back up", "Restore", "Upgrade", "Uninstall"):
        section = text.partition(f"\n## {page}\n")[2].partition("\n## ")[0]
        blocks = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]
        (lines,) = [lines for lines in blocks if lines[0].startswith("# the service")] or [["", *blocks[0]]]
        found[page] = lines[1:]
    return found


def make(root: Path, suite: str, tar: str | None) -> None:
    """A bare Debian with this checkout in it, and alice and bob."""
    if tar is None:
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={BARE}", suite, root], check=True)
    else:
        root.mkdir()
        subprocess.run(["tar", "-xf", tar, "-C", root], check=True)
    with suppress(FileNotFoundError):
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    copy_checkout(root / CHECKOUT[1:])


def options(root: Path) -> list[str]:
    """Of the container. It trusts whom this machine trusts, and its pip is set as this machine's."""
    shared = [f"--bind-ro={path}" for path in (AUTHORITIES, PIP) if path.exists()]
    # systemd of Debian 13 knows the unified hierarchy alone.
    os.environ["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"
    masked = [f"systemd.mask={unit}" for unit in ("systemd-networkd.service", "systemd-resolved.service")]
    return ["--quiet", f"--directory={root}", "--resolv-conf=off", *shared, *masked]


class Host:
    """A Debian that has been booted."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self.uid = ""

    def follow(self, found: Sequence[Block]) -> None:
        """Type what the section says; look at what came of it after each block."""
        self.good("root", "useradd -m alice; useradd -m bob")
        install, use, upgrade, remove = found
        before = self.inventory()
        self.type(install)
        assert self.says("root", "systemctl is-active aetherscale") == "active"
        self.uid = self.says("root", "id -u aetherscale")
        self.everybody_else_is_refused()
        self.type(use)
        self.follow_runbook((ROOT / "docs/runbook.md").read_text())
        guest = self.vm()
        assert guest["phase"] == "ready", guest
        guests = self.guests()
        self.same_again()
        files = f"{CHECKOUT}/pyproject.toml {CHECKOUT}/src/aetherscale/__init__.py"
        self.good("root", f"sed -i 's/{re.escape(__version__)}/{NEWER}/' {files}")
        self.type(upgrade)
        assert "build" in self.says("root", f"systemctl show -p StatusText aetherscale | grep {re.escape(NEWER)}")
        after = self.vm()
        assert (after["phase"], after["restarts"]) == ("ready", guest["restarts"]), after
        assert self.guests() == guests, "the guest is the same process"
        assert "VmAdopted" in self.says("alice", "aetherscale events list --vm web")
        self.same_again()
        self.removal_asks_first()
        self.type(remove)
        self.nothing_is_left(before)

    def type(self, block: Block) -> None:
        """Each line as it stands."""
        user, lines = block
        for line in lines:
            print(f"{user}$ {line}", flush=True)
            self.good(user, line)

    def follow_runbook(self, text: str) -> None:
        """Type what the pages say; look at what came of each."""
        page = pages(text)
        console, program, shell = (line.partition("#")[0].strip() for line in page["Log in to a VM"])
        assert "uptime" in self.says("alice", f"echo uptime | {console}")
        assert self.says("alice", program).startswith("Linux web")
        assert "Linux web" in self.says("alice", f"echo uname -a | script -qec '{shell}' /dev/null")

        at = page["Back up"].index("systemctl stop aetherscale")
        self.type(("root", page["Back up"][:at]))
        before = self.everything()
        self.type(("root", page["Back up"][at:]))
        assert self.vm()["phase"] == "ready"
        at = next(at for at, line in enumerate(page["Restore"]) if line.startswith("aetherscale vm start"))
        self.type(("root", page["Restore"][:at]))
        assert self.everything() == before
        self.type(("root", page["Restore"][at:]))
        assert self.vm()["phase"] == "ready"
        self.good("root", "rm -r /var/lib/aetherscale.before")

        assert page["Upgrade"] != []
        self.type(("root", page["Upgrade"]))  # of the same version: nothing changes
        remove, purge, program = page["Uninstall"]
        guests = self.guests()
        self.good("root", f"{remove.partition('#')[0]} --dry-run")
        self.good("root", f"{purge.partition('#')[0]} --kill --dry-run")
        assert self.guests() == guests, "nothing was done"
        self.type(("root", [remove]))
        assert self.guests() == guests, "they keep running"
        self.good("root", "/opt/aetherscale/bin/aetherscale host setup")
        assert self.guests() == guests
        assert self.vm()["phase"] == "ready"
        assert program.startswith("rm -r /opt/aetherscale"), "the end of README's section has it too"

    def everything(self) -> list[Any]:
        """What a user sees of the node: VMs, images and every event."""
        wanted = ("vm list --all", "image list --all", "events list")
        return [json.loads(self.says("alice", f"aetherscale {words} --json")) for words in wanted]

    def everybody_else_is_refused(self) -> None:
        """Bob gets a sentence for each way in, and no traceback."""
        for words in ("vm list", "why vm web", "doctor", "node list"):
            done = self.run("bob", f"aetherscale {words}")
            assert done.returncode != 0, words
            assert "for the members of the group aetherscale, and bob is not one" in done.stderr, done.stderr
            assert "usermod -aG aetherscale bob" in done.stderr
        done = self.run("bob", "aetherscale host setup")
        assert "only root can do this" in done.stderr, done.stderr
        done = self.run("root", "aetherscale")
        assert "systemctl start aetherscale" in done.stderr, done.stderr

    def same_again(self) -> None:
        """A second `host setup` finds everything as it is to be, and `doctor` is content."""
        said = self.says("root", "aetherscale host setup --dry-run") + self.says("root", "aetherscale host setup")
        assert {line.split()[0] for line in said.splitlines()} == {"already"}, said
        self.good("root", "aetherscale doctor")

    def removal_asks_first(self) -> None:
        """A guest that runs is not ended by the way."""
        done = self.run("root", "aetherscale host remove --purge")
        assert done.returncode == 1, done.stdout
        assert "1 of its virtual machines run" in done.stderr, done.stderr
        assert self.vm()["phase"] == "ready"

    def nothing_is_left(self, before: Mapping[str, set[str]]) -> None:
        """Nothing but packages: no file, user, group, unit or process that was not there before."""
        owned = set(self.says("root", "cat /var/lib/dpkg/info/*.list").splitlines())
        # logind forgets a user some seconds after the last unit of the user has ended, and systemd the unit of alice's
        # own manager some seconds after her last line.
        managers = "systemctl list-units --all --plain --no-legend 'user@*'"
        still = f"test -e {KNOWN_USERS}/{self.uid} || {managers} | grep -q ."
        self.good("root", f"for _ in $(seq 60); do {still} || break; sleep 1; done")
        for kind, now in self.inventory().items():
            left = {each for each in now - before[kind] if kind != "files" or each not in owned}
            if kind in ("users", "groups"):
                left = {
                    each for each in left if each.split(":")[0] not in ("kvm", "rdma", "render", "sgx")
                }  # of packages
            assert not left, f"{kind} are left: {sorted(left)}"

    def inventory(self) -> dict[str, set[str]]:
        """What there is."""
        files = self.says("root", "find / -xdev; find /run -xdev; ls -d /run/user/* 2>/dev/null || true").splitlines()
        units = self.says("root", "systemctl list-units --all --plain --no-legend 'aether*' 'user@*' | cut -d' ' -f1")
        unit_files = self.says("root", "systemctl list-unit-files --no-legend 'aether*' | cut -d' ' -f1")
        names = "cat /proc/[0-9]*/comm 2>/dev/null | grep -E 'qemu|python|nats|aether|sd-pam' || true"
        return {
            "files": {path for path in files if not NOT_OURS.match(path)},
            "users": set(self.says("root", "cat /etc/passwd").splitlines()),
            "groups": set(self.says("root", "cat /etc/group").splitlines()),
            "units": {*units.splitlines(), *unit_files.splitlines()},
            "processes": set(self.says("root", names).splitlines()),
        }

    def guests(self) -> list[str]:
        """The processes of VMs. Others come and go meanwhile, which grep tells as errors."""
        found = self.says("root", "grep -lsz '^aether-' /proc/[0-9]*/cmdline || true").splitlines()
        assert found, "there is one"
        return found

    def vm(self) -> dict[str, Any]:
        """The only VM, as alice sees it."""
        (found,) = json.loads(self.says("alice", "aetherscale vm list --json"))
        assert isinstance(found, dict)
        return found

    def says(self, user: str, line: str) -> str:
        """What a line that has to succeed writes."""
        return self.good(user, line).stdout.strip()

    def good(self, user: str, line: str) -> subprocess.CompletedProcess[str]:
        """A line that has to succeed."""
        done = self.run(user, line)
        if done.returncode != 0:
            log = self.run("root", "journalctl --no-pager -n 60").stdout
            raise AssertionError(f"{user}$ {line}\nended with {done.returncode}\n{done.stdout}{done.stderr}\n{log}")
        return done

    def run(self, user: str, line: str) -> subprocess.CompletedProcess[str]:
        """A line of a shell, as a user has it after a login; root's is in the checkout."""
        pip = [f"{name}={value}" for name, value in os.environ.items() if name in ("PIP_CERT", "PIP_DEFAULT_TIMEOUT")]
        shell = ["sh", "-ec", f"cd {CHECKOUT}; {line}"] if user == "root" else ["runuser", "-l", user, "-c", line]
        inside = [*entering(self._leader), "--wdns=/", "env", "-i", f"PATH={PATH}", "HOME=/root"]
        return subprocess.run(
            [*inside, *pip, *shell], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
