"""Make a host one of aetherscale's: a user, a directory, a service; and take the service out again.

Each step looks first and does only what is not so yet, so that it may be run again at any time. The user and what is in
the state directory are never removed.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Final

from aetherscale.gateways.cli.program import Step
from aetherscale.kernel.errors import Refused

USER: Final = "aetherscale"
KVM: Final = "kvm"
STATE_DIR: Final = Path("/var/lib/aetherscale")
UNIT: Final = "aetherscale.service"
UNIT_FILE: Final = Path("/etc/systemd/system") / UNIT
LINGERING: Final = Path("/var/lib/systemd/linger") / USER
SYSTEMD: Final = Path("/run/systemd/system")
HOMES: Final = (Path("/home"), Path("/root"))
CALL_S: Final = 90.0
"""How long one program may take: starting the service waits until its node is ready."""


def set_up(*, dry_run: bool) -> Iterator[Step]:
    """User, directory and service, step by step as they are done. Raises `Refused` where a step cannot be."""
    _require_systemd("setup", dry_run=dry_run)
    python = _python()
    _require_own_state()
    yield from _step(
        f"the system user {USER}",
        _user() is not None,
        lambda: _run(
            "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(STATE_DIR),
            "--shell", "/usr/sbin/nologin", USER,
        ),
        dry_run=dry_run,
    )  # fmt: skip
    if _group(KVM) is not None:
        yield from _step(
            f"its use of KVM: the group {KVM}", USER in _members(KVM), lambda: _run("usermod", "-aG", KVM, USER),
            dry_run=dry_run,
        )  # fmt: skip
    yield from _step(f"the state directory {STATE_DIR}", _is_private(STATE_DIR), _make_state_dir, dry_run=dry_run)
    yield from _step(
        "units for its virtual machines: a manager of its own, without a login", LINGERING.exists(),
        lambda: _run("loginctl", "enable-linger", USER), dry_run=dry_run,
    )  # fmt: skip
    content = unit(python, _user() or 0)
    is_written = UNIT_FILE.exists() and UNIT_FILE.read_text() == content
    yield from _step(f"the unit {UNIT_FILE}", is_written, lambda: _write_unit(python), dry_run=dry_run)
    is_current = is_written and _says("is-active", UNIT) == "active"
    yield from _step("the service, at each boot", _says("is-enabled", UNIT) == "enabled",
                     lambda: _run("systemctl", "enable", "--quiet", UNIT), dry_run=dry_run)  # fmt: skip
    yield from _step("the node", is_current, lambda: _run("systemctl", "restart", UNIT), dry_run=dry_run)


def take_out(*, dry_run: bool) -> Iterator[Step]:
    """End the service and remove it. Virtual machines run on, and the state stays. Raises `Refused`."""
    _require_systemd("remove", dry_run=dry_run)
    yield from _step("the service is stopped", not UNIT_FILE.exists(),
                     lambda: _run("systemctl", "disable", "--quiet", "--now", UNIT), dry_run=dry_run)  # fmt: skip
    yield from _step(f"{UNIT_FILE} is gone", not UNIT_FILE.exists(), _remove_unit, dry_run=dry_run)


def unit(python: str, uid: int) -> str:
    """The service for this installation."""
    text = resources.files("aetherscale").joinpath(UNIT).read_text()
    return text.format(python=python, uid=uid, user=USER, state_dir=STATE_DIR)


def _step(what: str, is_so: bool, do: Callable[[], None], *, dry_run: bool) -> Iterator[Step]:
    if is_so:
        yield Step(what, "already")
    elif dry_run:
        yield Step(what, "to do")
    else:
        do()
        yield Step(what, "done")


def _require_systemd(what: str, *, dry_run: bool) -> None:
    if not SYSTEMD.is_dir():
        raise Refused(
            501, f"host {what}: this host is not run by systemd", hint="run `aetherscale serve` under what runs it"
        )
    if os.geteuid() != 0 and not dry_run:
        raise Refused(403, f"host {what}: it takes root", hint=f"sudo {sys.executable} -m aetherscale host {what}")


def _python() -> str:
    """The interpreter that the service runs. Raises `Refused` where the user could not reach it."""
    for place in (Path(sys.executable), Path(sys.executable).resolve(), Path(__file__)):
        for parent in place.parents:
            if parent in HOMES or not parent.stat().st_mode & stat.S_IXOTH:
                raise Refused(
                    409,
                    f"host setup: the service could not reach {place}: it runs as {USER}, and sees no homes",
                    hint="install aetherscale where all may read, and run its own `host setup`: "
                    "python3 -m venv /opt/aetherscale; /opt/aetherscale/bin/pip install …",
                )
    return sys.executable


def _require_own_state() -> None:
    """Refuse a directory in which a node of somebody else worked: the service could neither read it nor end its VMs."""
    others = [path.name for path in STATE_DIR.glob("*") if path.lstat().st_uid != _user()]
    if others:
        raise Refused(
            409,
            f"host setup: {STATE_DIR} has files that are not {USER}'s: {', '.join(sorted(others)[:3])}",
            hint=f"stop the virtual machines and the node that made them; then: chown -R {USER}: {STATE_DIR}",
        )


def _make_state_dir() -> None:
    STATE_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    STATE_DIR.chmod(0o700)
    shutil.chown(STATE_DIR, USER, USER)


def _is_private(path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_uid == _user() and not found.st_mode & 0o077


def _write_unit(python: str) -> None:
    uid = _user()
    assert uid is not None, "the user has been made"
    UNIT_FILE.write_text(unit(python, uid))
    _run("systemctl", "daemon-reload")


def _remove_unit() -> None:
    UNIT_FILE.unlink(missing_ok=True)
    _run("systemctl", "daemon-reload")


def _user() -> int | None:
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return None


def _group(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _members(name: str) -> list[str]:
    return grp.getgrnam(name).gr_mem


def _says(*words: str) -> str:
    """What `systemctl` answers; it has an exit status for what is no failure here."""
    return _ended("systemctl", *words).stdout.strip()


def _run(*command: str) -> None:
    done = _ended(*command)
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip()
        raise Refused(500, f"{' '.join(command)}: {why}", hint=f"systemctl status {UNIT}; journalctl -u {UNIT}")


def _ended(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=CALL_S, check=False)
    except FileNotFoundError:
        raise Refused(501, f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Refused(504, f"{' '.join(command)}: no end after {CALL_S:g} s") from None
