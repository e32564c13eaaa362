"""The files of a Debian, installed into a directory by mmdebstrap, and made into what every guest of it needs.

It is all of root's, and removed by root: see `privilege`. Packages come with apt's own check of their signatures.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale.actors.images.building import guestfiles, privilege
from aetherscale.actors.images.building.aptwords import Teller
from aetherscale.actors.images.building.programs import Say, follow, run
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import to_the_end

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INSTALL_TIMEOUT_S: Final = 3300.0
"""How long mmdebstrap may take: a little less than the effect."""
ARCHIVE_TIMEOUT_S: Final = 20
"""How long an archive may send nothing; each file is asked for twice."""

PACKAGES: Final = (
    *("linux-image-cloud-amd64", "initramfs-tools", "zstd", "systemd-sysv", "dbus", "udev", "kmod", "procps"),
    *("systemd-resolved", "iproute2", "iputils-ping", "netbase", "ca-certificates", "openssh-server"),
    *("qemu-guest-agent", "sudo", "e2fsprogs", "login"),
)
_OF_ONE_RELEASE = {"trixie": ("systemd-repart",)}
_UNKNOWN = re.compile(r"(?m)^E: (?:Unable to locate package |Package ')([^\s']+)(?:' has no installation candidate)?$")
_AT_ODDS = re.compile(r"(?m)^E: (?:Unable to correct problems|Unmet dependencies)")
_EARLY = "early.tar"
_OF_THE_BUILD = ("/etc/hostname", "/etc/apt/apt.conf.d/99mmdebstrap", "/etc/dpkg/dpkg.cfg.d/99mmdebstrap")
"""The name of this host, and options of mmdebstrap that it has left in the tree."""


class Plan(Struct, frozen=True):
    """What is to be installed: the release, the archives, and packages beside those that every image has."""

    codename: str
    sources: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def included(self) -> tuple[str, ...]:
        """All packages that are asked for by name."""
        return (*PACKAGES, *_OF_ONE_RELEASE.get(self.codename, ()), *self.packages)


async def make(plan: Plan, work: Path, root_uuid: str, say: Say, *, archive_timeout_s: int = ARCHIVE_TIMEOUT_S) -> Path:
    """The tree, in the directory `work`, which has no other use. Raises Fault."""
    tree = work / "tree"
    (work / _EARLY).write_bytes(guestfiles.packed(guestfiles.EARLY))
    teller = Teller(say)
    try:
        await follow(
            *privilege.prefix(),
            *command(plan, tree, archive_timeout_s),
            cwd=work,
            hear=teller.hear,
            silent=teller.silent,
            timeout_s=INSTALL_TIMEOUT_S,
        )
    except Fault as failed:
        raise explained(failed) from failed
    say("setting the guest up")
    inside = (*privilege.prefix(), "chroot", str(tree))
    files = guestfiles.packed(guestfiles.files(plan.sources, root_uuid), guestfiles.links())
    await run(*inside, "tar", "--extract", "--no-same-owner", "--file=-", "--directory=/", given=files)
    await run(*inside, "systemctl", "enable", *guestfiles.SERVICES)
    await run(*inside, "find", "/etc/ssh", "-name", "ssh_host_*", "-delete")
    await run(*inside, "rm", "--force", *_OF_THE_BUILD)
    return tree


async def remove(work: Path) -> None:
    """Remove what a build has left in `work`, and `work`."""
    if await to_the_end(work.is_dir):
        await run(*privilege.prefix(), "rm", "--recursive", "--force", "--one-file-system", str(work))


def command(plan: Plan, tree: Path, archive_timeout_s: int) -> tuple[str, ...]:
    """mmdebstrap with its arguments."""
    options = (
        f'Acquire::http::Timeout "{archive_timeout_s}"',
        f'Acquire::https::Timeout "{archive_timeout_s}"',
        'Acquire::Retries "1"',
        'Acquire::Languages "none"',
        # A name that the archive has not is no pattern for names that it has.
        'APT::Cmd::Pattern-Only "true"',
    )
    return (
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--verbose"),
        *((f"--keyring={KEYRING}",) if KEYRING.is_file() else ()),
        *(f"--aptopt={option}" for option in options),
        # What a power cut would lose is made anew.
        "--dpkgopt=force-unsafe-io",
        f"--essential-hook=tar-in {_EARLY} /",
        f"--include={','.join(plan.included)}",
        *(plan.codename, str(tree), *plan.sources),
    )


def explained(failed: Fault) -> Fault:
    """The failure of mmdebstrap by its cause, where what it has said shows that another attempt is of no use."""
    if unknown := _UNKNOWN.search(failed.log_tail):
        reason = f"the archive has no package {unknown[1]!r}"
        remedy = "correct its name: apt-cache search, on a host of that release, tells which there are"
    elif _AT_ODDS.search(failed.log_tail):
        reason, remedy = "these packages cannot be installed together", "see what apt said, and leave one out"
    else:
        return failed
    return Fault(reason, remedy, log_tail=failed.log_tail, retryable=False)
