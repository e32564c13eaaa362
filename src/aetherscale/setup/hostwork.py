"""The parts of `host setup` and `host remove`, which look before they act, and calls of programs."""

from __future__ import annotations

import grp
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aetherscale.gateways.cli.program import Step
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.service import UNIT

SYSTEMD: Final = Path("/run/systemd/system")
CALL_S: Final = 90.0
"""How long one program may take: starting the service waits until its node is ready."""
PACKAGES_S: Final = 1800.0
"""How long apt may take."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is to be so: what it is, whether it is so already, and how it is made so."""

    what: str
    is_so: Callable[[], bool]
    do: Callable[[], object]


def steps(parts: Iterable[Part], *, dry_run: bool) -> Iterator[Step]:
    """Look at each part in turn and do what is not so yet; with `dry_run` only say so. Raises `Refused`."""
    for part in parts:
        try:
            if part.is_so():
                yield Step(part.what, "already")
            elif dry_run:
                yield Step(part.what, "to do")
            else:
                part.do()
                yield Step(part.what, "done")
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Refused(
                Reason.INTERNAL,
                f"host: this could not be done: {part.what}: {where}{error.strerror or error}",
                remedy="repair that, then run it again: finished steps are kept",
            ) from error


def require_systemd(
    what: str, *, dry_run: bool, instead: str = "run `aetherscale serve` under the init system of this host"
) -> None:
    """Raises `Refused` on a host without systemd, with what to do `instead`, and where the work takes root."""
    if not SYSTEMD.is_dir():
        raise Refused(
            Reason.NOT_IMPLEMENTED,
            f"host {what}: this host is not run by systemd",
            remedy=instead,
        )
    if os.geteuid() != 0 and not dry_run:
        own = Path(sys.executable).with_name("aetherscale")
        raise Refused(Reason.FORBIDDEN, f"host {what}: only root can do this", remedy=f"as root: {own} host {what}")


def says(*words: str) -> str:
    """The answer of `systemctl`; some of its exit statuses are not a failure here."""
    return ended("systemctl", *words).stdout.strip()


def run(*command: str, limit_s: float | None = None) -> None:
    """Run one of the host's programs. Raises `Refused` where it fails, with what it said."""
    done = ended(*command, limit_s=limit_s)
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip()
        raise Refused(
            Reason.INTERNAL, f"{' '.join(command)}: {why}", remedy=f"systemctl status {UNIT}; journalctl -u {UNIT}"
        )


def ended(*command: str, limit_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """One of the host's programs, after its end. Raises `Refused` where it is not there or does not end."""
    limit_s = CALL_S if limit_s is None else limit_s
    # No apt may ask anything, and what is read here is English.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=limit_s,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        raise Refused(Reason.NOT_IMPLEMENTED, f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Refused(Reason.DEADLINE, f"{' '.join(command)}: no end after {limit_s:g} s") from None


def write(path: Path, content: str, mode: int = 0o644) -> None:
    """Write a file that is whole at every moment, whatever the umask."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
    beside.replace(path)


def has(path: Path, content: str) -> bool:
    """Whether a file is there, with just this content."""
    try:
        return path.read_text() == content
    except (OSError, ValueError):
        return False


def group(name: str) -> int | None:
    """The number of a group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def members(name: str) -> list[str]:
    """The members of a group."""
    return grp.getgrnam(name).gr_mem if group(name) is not None else []
