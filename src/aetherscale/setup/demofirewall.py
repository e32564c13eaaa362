"""The firewall in the demo: a page of a guest is let in and fetched, and then its group is closed.

By a port of the host where the network is led to the world, else by the other guest.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Final

from msgspec import Struct

from aetherscale.setup.democommands import Commands, Deviation, heading, said, typed

GROUP: Final = "http"
PAGE: Final = "Hello"
GUEST_PORT: Final = 80
HOST_PORT: Final = 8080
"""The port of the host, where no program of the host listens there."""
OPENS_S: Final = 60.0
"""How long a page that is let in may take to come, where the guest is slow."""
PAUSE_S: Final = 0.5
GIVES_UP_S: Final = 2
_IN_PYTHON: Final = "import urllib.request\nprint(urllib.request.urlopen('{url}', None, {gives_up_s}).read())"
"""For a host without curl."""


class Way(Struct, frozen=True):
    """How the page is fetched, and how `firewall explain` is asked of it."""

    fetch: tuple[str, ...]
    explain: tuple[str, ...]


def show(aetherscale: Commands, vm: str, other: str, network: str, *, is_led_out: bool) -> None:
    """Let a page of `vm` in, fetch it, and close its group again. Raises `Deviation`."""
    heading("The firewall", "A VM with groups takes exactly what they allow, from the moment of each change.")
    aetherscale.run("vm", "exec", vm, "--", "sh", "-c", f"cd /tmp; echo {PAGE} > index.html; httpd")
    aetherscale.run("firewall", "group", "create", GROUP, "--allow", f"in:tcp:{GUEST_PORT}")
    aetherscale.run("firewall", "attach", vm, GROUP)
    way = _by_a_forward(aetherscale, vm, network) if is_led_out else _from_the_other(vm, other)
    expect_the_page(aetherscale, way.fetch)
    aetherscale.run("firewall", "group", "set", GROUP, "--nothing")
    expect_no_page(aetherscale, way.fetch)
    heading("Why", "The log says what decides, now and at any moment of the past.")
    aetherscale.run("firewall", "explain", *way.explain)
    before = aetherscale.asked("events", "list", "--type", "RulesSet")[-1]["seq"] - 1
    aetherscale.run("firewall", "explain", *way.explain, "--at", str(before))


def _by_a_forward(aetherscale: Commands, vm: str, network: str) -> Way:
    """From the host, by a port of it."""
    port = free_port()
    aetherscale.run("firewall", "forward", "add", vm, f"{port}:{GUEST_PORT}")
    address = aetherscale.asked("network", "show", network)["router"][0]
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}/"
    return Way(fetching(url), ("--from", "host", "--to", "host", "--port", f"tcp/{port}"))


def _from_the_other(vm: str, other: str) -> Way:
    """From the other guest, in the same network."""
    fetch = ("timeout", str(GIVES_UP_S), "wget", "-qO-", f"http://{vm}/")
    return Way(
        ("aetherscale", "vm", "exec", other, "--", *fetch),
        ("--from", other, "--to", vm, "--port", f"tcp/{GUEST_PORT}"),
    )


def fetching(url: str) -> tuple[str, ...]:
    """The command that fetches a page of this host: by curl, or by Python where there is none."""
    if shutil.which("curl"):
        return "curl", "-sS", "-m", str(GIVES_UP_S), url
    return "python3", "-c", _IN_PYTHON.format(url=url, gives_up_s=GIVES_UP_S)


def free_port() -> int:
    """A port that no program of the host has: HOST_PORT if it is free. Raises `Deviation`."""
    for port in (HOST_PORT, 0):
        with closing(socket.socket(socket.AF_INET6)) as sock, suppress(OSError):
            sock.bind(("::", port))
            return int(sock.getsockname()[1])
    raise Deviation("no port of the host is free")


def expect_the_page(aetherscale: Commands, fetch: Sequence[str]) -> None:
    """Show how the page is fetched, and what comes. Raises `Deviation` where it does not."""
    typed(shlex.join(fetch))
    until_s = time.monotonic() + OPENS_S
    while (done := _fetched(aetherscale, fetch)).returncode != 0 and time.monotonic() < until_s:
        time.sleep(PAUSE_S)
    _say(done)
    if done.returncode != 0 or PAGE not in done.stdout:
        raise Deviation("the page did not come")


def expect_no_page(aetherscale: Commands, fetch: Sequence[str]) -> None:
    """Show that it does not come. Raises `Deviation` where it does."""
    typed(shlex.join(fetch))
    done = _fetched(aetherscale, fetch)
    _say(done)
    if done.returncode == 0:
        raise Deviation("the page came, though no group lets it in")


def _fetched(aetherscale: Commands, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    program, *arguments = words
    line = {
        "aetherscale": aetherscale.line(*arguments),
        "python3": [sys.executable, *arguments],
    }.get(program, [program, *arguments])
    # The page is on this host, which no proxy reaches.
    environ = {name: value for name, value in aetherscale.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        line, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=OPENS_S, check=False
    )


def _say(done: subprocess.CompletedProcess[str]) -> None:
    """Show what a program said, and of its errors the last line."""
    silence = f"  No answer, and status {done.returncode}."
    for line in done.stdout.splitlines() or done.stderr.splitlines()[-1:] or [silence]:
        said(line)
