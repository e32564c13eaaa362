"""The part of `host setup --networks`: the host forwards packets, now and at each boot, and stays reachable meanwhile.

A host that forwards IPv6 ignores router advertisements, so devices that the host hears them on are told to hear them
all the same, before anything is forwarded: else the host loses its default route at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from aetherscale.actors.network import routing
from aetherscale.setup.hostwork import Part, has, write

PACKAGES: Final[Mapping[str, str]] = {"nft": "nftables", "dnsmasq": "dnsmasq-base"}
"""The Debian package of each program that virtual networks need."""
SYSCTL_FILE: Final = Path("/etc/sysctl.d/60-aetherscale.conf")

_HEADER: Final = """\
# Written by `aetherscale host setup --networks`, and removed by `aetherscale host remove`. Virtual networks of kind nat
# lead out through this host, so it forwards. While it forwards IPv6 it ignores router advertisements, and with them its
# own default route, but on devices whose accept_ra is 2.
"""
_LINE: Final = re.compile(r"net/ipv6/conf/([^/]+)/accept_ra = 2")


def parts(file: Path = SYSCTL_FILE, proc: Path = routing.PROC) -> Iterator[Part]:
    """One for the file, then one for each setting, in the order in which they do no harm."""
    settings = routing.wanted(routing.routing(proc), also=_kept(file, proc))
    content = text(settings)
    yield Part(f"forwarding at each boot: {file}", lambda: has(file, content), lambda: _write(file, content))
    for path, value in settings:
        yield _setting(path, value, proc)


def removal(file: Path = SYSCTL_FILE) -> Part:
    """The file is gone. What forwards now goes on, since others of the host may rely on it meanwhile."""
    left = "; until its next boot the host forwards, and hears router advertisements, as it does now"
    return Part(f"{file} is gone{left if file.exists() else ''}", lambda: not file.exists(), file.unlink)


def text(settings: Sequence[tuple[str, str]]) -> str:
    """The file of sysctl.d(5) that has these settings, in this order."""
    return _HEADER + "".join(f"{path} = {value}\n" for path, value in settings)


def _kept(file: Path, proc: Path) -> tuple[str, ...]:
    """The devices that the file names and the host still has: they do not look as if they had to be told any more."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return ()
    names = [found[1] for line in lines if (found := _LINE.fullmatch(line))]
    return tuple(name for name in names if routing.value(routing.accept_ra(name), proc) is not None)


def _setting(path: str, value: str, proc: Path) -> Part:
    file = proc / "sys" / path
    return Part(
        f"{routing.written(path)} = {value}",
        lambda: routing.value(path, proc) == value,
        lambda: file.write_text(value),
    )


def _write(file: Path, content: str) -> None:
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write(file, content)
