"""The requirements of virtual networks, for `doctor`. Looks and tries, and leaves nothing behind.

`look` reads, `judge` says what that means: it is pure. A node without networks is not broken, so nothing here is an
error.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from aetherscale import service
from aetherscale.actors.network import filters, routing
from aetherscale.actors.network.claim import ANOTHER, STOP_IT, is_another
from aetherscale.actors.network.model.views import Obstacle
from aetherscale.actors.network.netlink.faults import BRIDGES, NET_ADMIN, SYSCTL, TUN
from aetherscale.actors.network.netlink.taps import DEVICE
from aetherscale.actors.network.nft.nftables import Nftables, NftError
from aetherscale.actors.network.routing import IPV4, IPV6, Routing, written
from aetherscale.kernel.findings import Finding
from aetherscale.settings import Settings

CALL_S: Final = 20.0
"""How long a program may take to answer."""
SET_UP: Final = "sudo aetherscale host setup --networks"
APT: Final = "apt-get install --no-install-recommends"
PROGRAMS: Final = ":/usr/local/sbin:/usr/sbin:/sbin"
"""Where programs of networks are that a user's PATH does not have."""

_CAP_NET_ADMIN: Final = 12
_PROBED_SETTING: Final = "net/ipv6/conf/default/accept_ra"
_KNOBS: Final[Mapping[str, tuple[str, str]]] = {
    "user/max_user_namespaces": ("0", "15000"),
    "user/max_net_namespaces": ("0", "15000"),
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
}
"""Settings below /proc/sys that forbid user and network namespaces: with which value, and one that does not."""
_CALLS: Final = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
_PROBE: Final = (
    "import fcntl, socket, struct; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    "fcntl.ioctl(s, 0x8914, struct.pack('16sH22x', b'lo', 1))"
)
"""Sets the loopback of the namespace up (SIOCSIFFLAGS), which takes a capability there."""


class Seen(Struct, frozen=True):
    """What was read of a host."""

    is_service: bool
    """Whether it is about the node of this host's service."""
    may_administer: bool
    """Whether the node has CAP_NET_ADMIN."""
    tun_errno: int
    """The error of opening /dev/net/tun; 0 for none."""
    has_bridges: bool
    may_write_settings: bool
    """Whether settings of network devices below /proc/sys can be written, or there are none to write."""
    nft: str
    """Why nothing can be done with nftables; "" where it can."""
    chains: str | None
    """The chains of everybody, as nft lists them; None where this process may not see them."""
    tables: Mapping[str, str]
    """The tables of others that drop, by family and name, as nft lists them."""
    dnsmasq: str
    """The path of the program; "" for none."""
    namespaces: str
    """Why a user and network namespace could not be made; "" where it could."""
    forbidding: tuple[str, ...]
    """Those of the settings of namespaces that forbid them."""
    routing: Routing
    calls: tuple[str, ...] = ()
    """The `bridge-nf-call-*` that are on."""
    legacy: Mapping[str, str | None] = {}
    """What programs of `filters.LEGACY` say whose rules the kernel has; None for one that says nothing."""
    is_another: bool = False
    """Whether another node of this host has networks, which are one node's."""


def findings(settings: Settings) -> Iterator[Finding]:
    """All findings."""
    yield from judge(look(settings))


def judge(seen: Seen) -> Iterator[Finding]:
    """What is missing for networks; and, where the node could have some, what they would not reach."""
    lacking = list(missing(seen))
    for check, why, remedy in lacking:
        found = f"no virtual networks: {why}; VMs have user-mode networking"
        yield Finding(check, "warning", found, remedy)
    if not lacking:
        found = f"CAP_NET_ADMIN, {DEVICE}, bridges, nftables, {seen.dnsmasq} and namespaces are there"
        yield Finding("networks", "ok", found)
    if seen.may_administer:
        yield from _forwarding(seen)
        dropping = filters.unanswered(filters.dropping(seen.chains or ""), seen.tables)
        others = [*dropping, *filters.legacy_dropping(seen.legacy)]
        yield from filters.findings(others, seen.calls, is_known=seen.chains is not None)


def missing(seen: Seen) -> Iterator[tuple[str, str, str]]:
    """What keeps the node from networks: check, reason and remedy of each."""
    unit = f"{SET_UP}; if it is missing still: systemctl cat {service.UNIT}"
    if not seen.may_administer:
        whose = service.UNIT if seen.is_service else "this process"
        yield "networks", f"{whose} does not have the capability CAP_NET_ADMIN", unit if seen.is_service else NET_ADMIN
    if seen.tun_errno in (errno.EACCES, errno.EPERM):
        remedy = f"chmod 666 {DEVICE}, as udev has it on other hosts: a tap of ours still takes CAP_NET_ADMIN"
        yield "tun", f"the node may not open {DEVICE}", remedy
    elif seen.tun_errno:
        yield "tun", f"{DEVICE} cannot be opened: {os.strerror(seen.tun_errno)}", TUN
    if seen.is_another:
        yield "networks of the host", ANOTHER, STOP_IT
    if not seen.has_bridges:
        yield "bridge", "this kernel has no bridges", BRIDGES
    if seen.may_administer and not seen.may_write_settings:
        found = f"/proc/sys/{_PROBED_SETTING} cannot be written"
        yield "settings of devices", found, unit if seen.is_service else SYSCTL
    if seen.nft:
        yield "nft", seen.nft, f"{APT} nftables; modprobe nf_tables"
    if not seen.dnsmasq:
        yield "dnsmasq", "dnsmasq is not installed", f"{APT} dnsmasq-base"
    if seen.namespaces:
        yield "namespaces", f"no user and network namespace for dnsmasq: {seen.namespaces}", _allowing(seen, unit)


def _allowing(seen: Seen, unit: str) -> str:
    if seen.forbidding:
        return f"sysctl -w {' '.join(f'{written(path)}={_KNOBS[path][1]}' for path in seen.forbidding)}"
    return unit if seen.is_service else "in a container: allow unshare(2) of user, network and mount namespaces"


def _forwarding(seen: Seen) -> Iterator[Finding]:
    now = seen.routing
    off = [(path, name) for path, on, name in ((IPV4, now.ipv4, "IPv4"), (IPV6, now.ipv6, "IPv6")) if on is False]
    typed = " ".join(f"{written(path)}={value}" for path, value in routing.wanted(now))
    remedy = SET_UP if seen.is_service else f"sysctl -w {typed}"
    if off:
        settings = ", ".join(f"{written(path)} = 0" for path, _ in off)
        found = f"networks of kind nat lead nowhere: the host does not forward {' and '.join(name for _, name in off)}"
        yield Finding("forwarding", "warning", f"{found} ({settings})", remedy)
    elif now.ipv4 is None:
        yield Finding("forwarding", "warning", f"/proc/sys/{IPV4} cannot be read", "look at it as the node's user")
    else:
        families = "IPv4" if now.ipv6 is None else "IPv4 and IPv6"
        yield Finding("forwarding", "ok", f"networks of kind nat lead out: the host forwards {families}")
    if now.ipv6 and now.hearing:
        found = (
            f"{', '.join(now.hearing)}: the host forwards IPv6, so it ignores the router advertisements there "
            "(accept_ra = 1), and loses its addresses and its default route"
        )
        yield Finding("uplink", "warning", found, remedy)


def look(settings: Settings, root: Path = Path("/")) -> Seen:
    """Read and try what networks need. Raises `OSError` where /proc is none."""
    proc = root / "proc"
    is_service = service.is_state(settings.state_dir)
    own = _has_net_admin(proc)
    nft, chains, tables = _nftables(look_at_chains=own)
    return Seen(
        is_service=is_service,
        may_administer=_of_the_unit(own) if is_service else own,
        tun_errno=_errno_of_opening(root / DEVICE.lstrip("/"), os.O_RDWR),
        has_bridges=has_bridges(root, platform.release()),
        may_write_settings=_errno_of_opening(proc / "sys" / _PROBED_SETTING, os.O_WRONLY) in (0, errno.ENOENT),
        nft=nft,
        chains=chains,
        tables=tables,
        dnsmasq=_path_of("dnsmasq") or "",
        namespaces=_tried_namespaces(),
        forbidding=tuple(path for path, (off, _) in _KNOBS.items() if routing.value(path, proc) == off),
        routing=routing.routing(proc),
        calls=_calls(proc),
        legacy=_legacy(root),
        is_another=is_another(settings.state_dir, proc),
    )


def obstacles(root: Path = Path("/")) -> list[Obstacle]:
    """Why the host drops now what our rules let pass: filters of others, and that it does not forward."""
    _, chains, tables = _nftables(look_at_chains=True)
    found = [*filters.unanswered(filters.dropping(chains or ""), tables), *filters.legacy_dropping(_legacy(root))]
    proc = root / "proc"
    return [*_not_forwarding(routing.routing(proc)), *filters.obstacles(found, _calls(proc))]


def _not_forwarding(now: routing.Routing) -> Iterator[Obstacle]:
    typed = f"sysctl -w {' '.join(f'{written(path)}={value}' for path, value in routing.wanted(now))}"
    for version, path, on in ((4, IPV4, now.ipv4), (6, IPV6, now.ipv6)):
        if on is False:
            what = f"this host does not forward IPv{version} ({written(path)} = 0)"
            yield Obstacle((version,), ("out", "in", "led"), what, typed)


def _calls(proc: Path) -> tuple[str, ...]:
    return tuple(name for name in _CALLS if routing.value(f"net/bridge/{name}", proc) == "1")


def _legacy(root: Path) -> dict[str, str | None]:
    modules = {program: root / "sys/module" / module for program, (module, _) in filters.LEGACY.items()}
    return {program: _said(program, "-S") for program, module in modules.items() if module.exists()}


def has_bridges(root: Path, release: str) -> bool:
    """Whether the kernel has bridges, or can load them, as it does when the first one is made.

    The service does not see the modules that could be loaded. Where nobody can tell, it is taken to have them.
    """
    if (root / "sys/module/bridge").exists():
        return True
    lists = []
    for name in ("modules.builtin", "modules.dep"):
        with suppress(OSError):
            lists.append((root / "lib/modules" / release / name).read_text())
    return not lists or any("/bridge.ko" in each for each in lists)


def _of_the_unit(own: bool) -> bool:
    """Whether the service has the capability, which this process need not have; without systemd, whether this has."""
    said = _said("systemctl", "show", "-p", "AmbientCapabilities", service.UNIT) or ""
    return "cap_net_admin" in said.lower() if "=" in said else own


def _has_net_admin(proc: Path) -> bool:
    for line in (proc / "self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False


def _errno_of_opening(path: Path, flags: int) -> int:
    """The error of opening a file; 0 for none. access(2) would not see what a capability allows."""
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _nftables(*, look_at_chains: bool) -> tuple[str, str | None, dict[str, str]]:
    """Why nftables cannot be used, the chains that there are, and the tables that drop."""
    try:
        nftables = Nftables()
    except OSError as error:
        return str(error), None, {}
    tables = {}
    try:
        chains = nftables.run("list chains") if look_at_chains else None
        for name in filters.listings(filters.dropping(chains or "")):
            with suppress(NftError):  # it is gone meanwhile
                tables[name] = nftables.run(f"list table {name}")
    except NftError as error:
        return f"the kernel refuses it: {error.words}", None, {}
    finally:
        nftables.close()
    return "", chains, tables


def _tried_namespaces() -> str:
    """Why the node's user can have no network of its own to run dnsmasq in; "" where it can."""
    unshare = _path_of("unshare")
    if unshare is None:
        return "unshare is not installed"
    around = (unshare, "--user", "--map-current-user", "--keep-caps", "--net", "--mount", "--")
    try:
        done = subprocess.run(
            [*around, sys.executable, "-I", "-S", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=CALL_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {CALL_S:g} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"unshare ended with {done.returncode}"])[-1]


def _path_of(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + PROGRAMS)


def _said(*command: str) -> str | None:
    """What a program prints; None where it fails, or is not there."""
    path = _path_of(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *command[1:]], capture_output=True, text=True, timeout=CALL_S, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
