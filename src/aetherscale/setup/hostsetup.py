"""Make a host one of aetherscale's: packages, a user, directories, the program for everybody, a service.

Each part looks first and does only what is not so yet, so that it may be run again at any time, as after an upgrade:
a node of another version, or of other settings, than what is there now is started anew. Virtual machines run on.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Final

from aetherscale import __version__, service
from aetherscale.gateways.cli import completion
from aetherscale.gateways.cli.program import Step
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.service import (
    CONFIG,
    GROUP,
    READER,
    READER_SOCKET_UNIT,
    READER_UNIT,
    RUN_DIR,
    STATE_DIR,
    UNIT,
    UNITS,
    USER,
)
from aetherscale.settings import load_settings
from aetherscale.setup import hostnetworks, hostuids
from aetherscale.setup.hostpackages import PACKAGES, packages, which
from aetherscale.setup.hostwork import (
    Part,
    group,
    has,
    members,
    require_systemd,
    run,
    says,
    steps,
    write,
)

KVM: Final = "kvm"
STATE_MODE: Final = 0o710
"""The group may come in, to hand files over in `incoming`, and sees nothing: all else is for the node alone."""
LINGERING: Final = Path("/var/lib/systemd/linger") / USER
HOMES: Final = (Path("/home"), Path("/root"))
PROGRAM: Final = Path("/usr/local/bin/aetherscale")
COMPLETION: Final = Path("/usr/local/share/bash-completion/completions/aetherscale")
OF_THE_NODE: Final = frozenset(
    {"Type", "ExecStart", "Restart", "RestartSec", "TimeoutStopSec", "KillMode", "RuntimeDirectory",
     "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"}
)  # fmt: skip
"""The lines of the service's unit that are not the reader's, which is to see the host just as the node does."""

SETTINGS: Final = f"""\
# The settings of this host's node, as in docs/cli.md. After a change: aetherscale host setup, which restarts the node
# where that is needed; virtual machines run on. The state is always in {STATE_DIR}.
#
# node = "host1"
# nats = "nats://user:password@10.0.0.1:4222"
# accelerator = "auto"
# stream-max-bytes = "1G"
"""


def set_up(*, dry_run: bool, networks: bool) -> Iterator[Step]:
    """Everything that makes the service, step by step as it is done. Raises `Refused` where a step cannot be.

    With `networks` also what virtual networks need of the host.
    """
    require_systemd("setup", dry_run=dry_run)
    python = _python()
    _require_own_state()
    _require_settings()
    yield from steps(_parts(python, networks=networks), dry_run=dry_run)


def _parts(python: str, *, networks: bool) -> tuple[Part, ...]:
    """In this order: each stands on those before it."""
    units = tuple(_units(python))
    # Looked at before anything is done, so that a dry run shows a restart too.
    are_units_so = all(part.is_so() for part in units)
    programs = {**PACKAGES, **(hostnetworks.PACKAGES if networks else {})}
    of_networks = hostnetworks.parts() if networks else ()
    running = _running(are_units_so=are_units_so)
    return (packages(programs), *_users(), *_files(python), *of_networks, *units, *running)


def _users() -> Iterator[Part]:
    yield Part(
        f"the group {GROUP}: its members may use the node",
        lambda: group(GROUP) is not None,
        lambda: run("groupadd", "--system", GROUP),
    )
    yield Part(
        f"the system user {USER}",
        lambda: service.uid() is not None,
        lambda: run(
            "useradd", "--system", "--gid", GROUP, "--no-create-home", "--home-dir", str(STATE_DIR),
            "--shell", "/usr/sbin/nologin", USER,
        ),
    )  # fmt: skip
    if group(KVM) is not None or which("qemu-system-x86_64") is None:  # whose package makes the group
        yield Part(f"its use of KVM: the group {KVM}", lambda: USER in members(KVM), _may_use_kvm)


def _may_use_kvm() -> None:
    if group(KVM) is not None:
        run("usermod", "-aG", KVM, USER)


def _files(python: str) -> Iterator[Part]:
    yield Part(f"the state directory {STATE_DIR}", lambda: _is_private(STATE_DIR), _make_state_dir)
    yield Part(f"the settings {CONFIG}", _has_settings, _make_settings)
    program = Path(python).with_name("aetherscale")
    yield Part(f"the program on everybody's PATH: {PROGRAM}", lambda: _links_to(program), lambda: _link(program))
    yield _written("completion for bash:", COMPLETION, lambda: completion.BASH)


def _units(python: str) -> Iterator[Part]:
    yield Part(
        "units for its virtual machines: a manager of its own, without a login",
        LINGERING.exists,
        lambda: run("loginctl", "enable-linger", USER),
    )
    yield _unit(UNIT, lambda: unit(python, service.uid() or 0))
    yield _unit(READER_UNIT, lambda: reader_unit(python, service.uid() or 0))
    yield _unit(READER_SOCKET_UNIT, reader_socket)
    uids = hostuids.contents(python)
    yield Part(
        "a uid of its own for each virtual machine: the units of the mapper",
        lambda: hostuids.are_there(uids),
        lambda: hostuids.make(uids),
    )


def _running(*, are_units_so: bool) -> Iterator[Part]:
    yield _enabled(UNIT, "the service, at each boot")
    yield _enabled(READER_SOCKET_UNIT, "its reader, at each boot")
    yield Part(
        "the reader listens",
        lambda: are_units_so and says("is-active", READER_SOCKET_UNIT) == "active" and READER.exists(),
        lambda: run("systemctl", "restart", READER_SOCKET_UNIT),
    )
    yield Part(
        f"the node, of version {__version__}",
        lambda: are_units_so and _is_current(),
        lambda: run("systemctl", "restart", UNIT),
    )


def unit(python: str, uid: int) -> str:
    """The service for this installation."""
    text = resources.files("aetherscale.setup").joinpath(UNIT).read_text()
    return text.format(python=python, uid=uid, user=USER, state_dir=STATE_DIR, run_dir=RUN_DIR, config=CONFIG)


def reader_unit(python: str, uid: int) -> str:
    """One reading for a member of the group, by the node's user and with the node's eyes on the host."""
    _, _, own = unit(python, uid).partition("[Service]\n")
    kept = [
        line
        for line in own.partition("[Install]")[0].splitlines()
        if "=" in line and not line.startswith("#") and line.partition("=")[0] not in OF_THE_NODE
    ]
    return "\n".join(
        (
            "# Written by `aetherscale host setup`: the unit that reads the log for the members of the group.",
            "[Unit]",
            "Description=aetherscale: a reading for a member of the group",
            "CollectMode=inactive-or-failed",
            "",
            "[Service]",
            f"ExecStart={python} -m aetherscale.gateways.cli.reader",
            "StandardInput=socket",
            "StandardOutput=journal",
            "StandardError=journal",
            *kept,
            "",
        )
    )


def reader_socket() -> str:
    """Where members of the group ask for a reading."""
    return f"""\
# Written by `aetherscale host setup`: where the members of the group have the log read.
[Unit]
Description=aetherscale: readings for the members of the group

[Socket]
ListenSequentialPacket={READER}
Accept=yes
SocketUser=root
SocketGroup={GROUP}
SocketMode=0660
MaxConnections=64
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def _written(what: str, path: Path, content: Callable[[], str], then: Callable[[], object] | None = None) -> Part:
    def do() -> None:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write(path, content())
        if then is not None:
            then()

    return Part(f"{what} {path}", lambda: has(path, content()), do)


def _unit(name: str, content: Callable[[], str]) -> Part:
    return _written("the unit", UNITS / name, content, lambda: run("systemctl", "daemon-reload"))


def _enabled(name: str, what: str) -> Part:
    return Part(
        what, lambda: says("is-enabled", name) == "enabled", lambda: run("systemctl", "enable", "--quiet", name)
    )


def _is_current() -> bool:
    """Whether the node that runs is what is installed, with the unit and the settings as they are now."""
    shown = says("show", "-p", "ActiveState,StatusText", UNIT).splitlines()
    return "ActiveState=active" in shown and f"StatusText={service.build()}" in shown


def _python() -> str:
    """The interpreter that the service runs. Raises `Refused` where the user could not reach it."""
    for place in (Path(sys.executable), Path(sys.executable).resolve(), Path(__file__)):
        for parent in place.parents:
            if parent in HOMES or not parent.stat().st_mode & stat.S_IXOTH:
                raise Refused(
                    Reason.CONFLICT,
                    f"host setup: the service could not reach {place}: it runs as {USER}, and "
                    "cannot see home directories",
                    remedy="install aetherscale where all may read, and run its own `host setup`: "
                    "python3 -m venv /opt/aetherscale; /opt/aetherscale/bin/pip install …",
                )
    return sys.executable


def _require_own_state() -> None:
    """Refuse a directory in which another user's node worked: the service could neither read it nor end its VMs."""
    others = [path.name for path in STATE_DIR.glob("*") if path.lstat().st_uid != service.uid()]
    if others:
        raise Refused(
            Reason.CONFLICT,
            f"host setup: {STATE_DIR} has files that are not {USER}'s: {', '.join(sorted(others)[:3])}",
            remedy=f"stop the virtual machines and the node that made them; then: chown -R {USER}: {STATE_DIR}",
        )


def _require_settings() -> None:
    """Refuse settings with which the node would not start. Raises `Refused`."""
    if os.geteuid() != 0 or not CONFIG.exists():
        return
    settings = load_settings({"config": str(CONFIG)}, {})
    if not settings.is_default and settings.state_dir != STATE_DIR:
        raise Refused(
            Reason.BAD_REQUEST,
            f"host setup: {CONFIG} has state-dir = {str(settings.state_dir)!r}, and the service's is {STATE_DIR}",
            remedy=f"leave state-dir out; to have it on another disk, mount that on {STATE_DIR}",
        )


def _make_state_dir() -> None:
    STATE_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    STATE_DIR.chmod(STATE_MODE)
    shutil.chown(STATE_DIR, USER, GROUP)


def _is_private(path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_uid == service.uid() and found.st_mode & 0o777 == STATE_MODE


def _has_settings() -> bool:
    try:
        found = CONFIG.stat()
    except OSError:
        return False
    return found.st_gid == group(GROUP) and found.st_mode & 0o777 == 0o640


def _make_settings() -> None:
    CONFIG.parent.mkdir(mode=0o755, exist_ok=True)
    if not CONFIG.exists():
        write(CONFIG, SETTINGS, 0o640)
    CONFIG.chmod(0o640)
    shutil.chown(CONFIG, "root", GROUP)


def _links_to(program: Path) -> bool:
    return PROGRAM.is_symlink() and os.readlink(PROGRAM) == str(program)


def _link(program: Path) -> None:
    if PROGRAM.exists() and not PROGRAM.is_symlink():
        raise Refused(
            Reason.CONFLICT,
            f"host setup: {PROGRAM} is a file of another program",
            remedy=f"move it away, or remove it: rm {PROGRAM}",
        )
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    PROGRAM.unlink(missing_ok=True)
    PROGRAM.symlink_to(program)
