"""`vm ssh`: the host's own `ssh`, with the guest's address found and the guest's key known, so that nothing is asked.

The key is the guest's word: its agent tells it, over a channel that no network has. So a host that has the guest's
address by mistake or on purpose is not taken for it.

Where no address leads to the guest, or none answers, `ssh` speaks with an sshd that the agent starts for this session,
with its streams (`sshd -i`): by a `ProxyCommand`, which is `vm exec`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import FAILED, Failure, bad_usage
from aetherscale.gateways.cli.work import info, suggesting

PORT: Final = 22
CONNECT_S: Final = 3.0
"""How long an address has to answer at the port of SSH."""
KEYS_S: Final = 30.0
STEP_S: Final = 1.0
NETWORK_S: Final = 5.0
"""How long an address that does not answer is tried before the session goes through the agent."""
INETD: Final = (
    'for sshd in /usr/sbin/sshd /usr/local/sbin/sshd /usr/bin/sshd; do [ -x "$sshd" ] || continue; '
    'mkdir -p -m 755 /run/sshd; exec "$sshd" -i; done; echo "the guest has no sshd" >&2; exit 127'
)
"""Run in the guest, on one line, as options of `ssh` are."""
_KEYS: Final = ("sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub")
_ANY: Final = "0.0.0.0"  # noqa: S104 - of a port that is open on all addresses


class Place(NamedTuple):
    """Where a guest's port of SSH may be reached from here."""

    address: str
    port: int


def ssh_vm(context: Context) -> int:
    """Log in to a guest, or run a program in it; answers with the exit status of `ssh`."""
    values = context.values
    if context.out.json:
        raise bad_usage("vm ssh: --json is refused: a session is no JSON", "aetherscale vm exec NAME --json -- COMMAND")
    name = values["NAME"]
    with suggesting(context, "vm", name):
        found = context.client.result("compute", "vm-info", {"vm-id": name})
    vm = {**found["vm"], **found.get("host", {})}
    program = shutil.which("ssh")
    if program is None:
        raise Failure(500, "vm ssh: this host has no ssh", hint="apt-get install openssh-client")
    keys, place = _reached(context, vm, places_of(context, vm))
    through = [] if place else ["-o", f"ProxyCommand={_proxy(vm['id'])}"]
    with tempfile.TemporaryDirectory(prefix="aetherscale-ssh-") as directory:
        known = Path(directory, "known_hosts")
        known.write_text("".join(f"{vm['id']} {key}\n" for key in keys))
        user = values["user"] or vm["user"] or "root"
        # With a proxy the host's name is looked up nowhere.
        where = _options(vm["id"], known, place or Place(vm["id"], PORT), user, values["identity"])
        command = [program, *through, *where, *values["COMMAND"]]
        status = subprocess.run(command, check=False, env=_environment(context)).returncode
    return status if status >= 0 else FAILED


def _proxy(vm_id: str) -> str:
    """The command by which `ssh` speaks with an sshd in the guest, as its shell reads it."""
    words = [sys.executable, "-m", "aetherscale", "vm", "exec", "-i", vm_id, "--", "sh", "-c", INETD]
    return shlex.join(words).replace("%", "%%")


def _environment(context: Context) -> dict[str, str]:
    """That of this program, with the settings that were typed: the proxy finds the same node."""
    from aetherscale.settings import NAMES

    typed = {name: text for name, text in context.parsed.texts.items() if name in (*NAMES, "config")}
    return {**os.environ, **{f"AETHERSCALE_{name.upper().replace('-', '_')}": text for name, text in typed.items()}}


def places_of(context: Context, vm: Mapping[str, Any]) -> list[Place]:
    """Where a guest may be reached from its host; no network of the kind `isolated` has the host in it."""
    kinds = {port["network-id"]: info(context, "network", port["network-id"])["kind"] for port in vm["ports"]}
    return list(_places(vm, frozenset(each for each, kind in kinds.items() if kind == "isolated")))


def _places(vm: Mapping[str, Any], isolated: frozenset[str]) -> Iterator[Place]:
    """The surest first."""
    for port in vm["publish"]:
        if (port["guest-port"], port["protocol"]) == (PORT, "tcp"):
            yield Place("127.0.0.1" if port["address"] == _ANY else port["address"], port["host-port"])
    ports = [port for port in vm["ports"] if port["network-id"] not in isolated]
    own = [address["ip"] for port in ports for address in port["addresses"]]
    leased = [address for port in ports for address in vm.get("leased", {}).get(port["tap"], ())]
    for address in dict.fromkeys([*own, *leased]):
        yield Place(address, PORT)


def _reached(context: Context, vm: Mapping[str, Any], places: Sequence[Place]) -> tuple[Sequence[str], Place | None]:
    """The keys of the guest's host, and where it answers; None for nowhere, where the agent does.

    A guest may be ready before its sshd is. Raises `Failure`.
    """
    until_s = time.monotonic() + float(context.values["timeout"])
    network_until_s: float | None = None
    with context.out.progress(vm["name"]) as progress:
        while True:
            try:
                keys = _host_keys(context, vm)
                network_until_s = network_until_s or time.monotonic() + NETWORK_S
                if not places:
                    return keys, None
                try:
                    return keys, _answering(vm["name"], places)
                except Failure as silent:
                    if time.monotonic() >= min(until_s, network_until_s):
                        context.out.note(f"{silent.message}; so this session goes through the guest agent")
                        return keys, None
            except Failure as not_yet:
                if not not_yet.retryable or time.monotonic() >= until_s:
                    raise
            progress.step("waiting for sshd in the guest")
            time.sleep(STEP_S)


def _host_keys(context: Context, vm: Mapping[str, Any]) -> Sequence[str]:
    """The public keys of the guest's host, as its agent tells them. Raises `Failure`."""
    options = {"vm-id": vm["id"], "command": list(_KEYS), "timeout-s": KEYS_S}
    told = context.client.result("compute", "exec-vm", options, timeout_s=KEYS_S + 10)
    keys = [" ".join(words[:2]) for line in told["stdout"].splitlines() if len(words := line.split()) >= 2]
    if told["exit-code"] != 0 or not keys:
        said = told["stderr"].strip().splitlines()
        raise Failure(
            409,
            f"vm ssh: the guest of {vm['name']} has no host keys of sshd{f': {said[-1][:200]}' if said else ''}",
            hint="its image needs openssh-server, whose first start makes them",
            retryable=True,
        )
    return keys


def _answering(name: str, places: Sequence[Place]) -> Place:
    """The first that answers. Raises `Failure`."""
    place = next(filter(_answers, places), None)
    if place is None:
        tried = ", ".join(f"{each.address} port {each.port}" for each in places)
        raise Failure(
            503,
            f"vm ssh: nothing answers at {tried}",
            hint=f"does sshd run in the guest, and does a group of {name} let TCP 22 in? "
            f"aetherscale firewall explain --from host --to {name} --port tcp/22",
            retryable=True,
        )
    return place


def _answers(place: Place) -> bool:
    try:
        socket.create_connection(place, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def _options(vm_id: str, known: Path, place: Place, user: str, identity: str | None) -> list[str]:
    """Those of `ssh`, by which it knows the key of this guest and of no other, and asks nothing; and where it is."""
    told = {
        "HostKeyAlias": vm_id,
        "UserKnownHostsFile": str(known),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
    }
    words = [word for name, value in told.items() for word in ("-o", f"{name}={value}")]
    words += ["-i", identity] if identity is not None else []
    return [*words, "-p", str(place.port), "-l", user, "--", place.address]
