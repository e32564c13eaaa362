"""`vm ssh`: the host's own `ssh`, with the guest's address found and the guest's key known, so that nothing is asked.

The key is the guest's word: its agent tells it, over a channel that no network has. So a host that has the guest's
address by mistake or on purpose is not taken for it.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import FAILED, Failure, bad_usage
from aetherscale.gateways.cli.work import suggesting

PORT: Final = 22
CONNECT_S: Final = 3.0
"""How long an address has to answer at the port of SSH."""
KEYS_S: Final = 30.0
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
    places = list(_places(vm))
    if not places:
        raise Failure(
            409,
            f"vm ssh: no address of {name} is known that leads to it from here",
            hint="a VM has one in a network of the kind nat, or with --publish 2222:22; without one: "
            f"aetherscale vm exec {name} -- COMMAND",
        )
    keys = _host_keys(context, vm)
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
    with tempfile.TemporaryDirectory(prefix="aetherscale-ssh-") as directory:
        known = Path(directory, "known_hosts")
        known.write_text("".join(f"{vm['id']} {key}\n" for key in keys))
        command = [program, *_options(vm["id"], known, place, values["user"], values["identity"]), *values["COMMAND"]]
        status = subprocess.run(command, check=False).returncode
    return status if status >= 0 else FAILED


def _places(vm: Mapping[str, Any]) -> Iterator[Place]:
    """Where the guest may be reached, the surest first. An isolated network has no host in it."""
    for port in vm["publish"]:
        if (port["guest-port"], port["protocol"]) == (PORT, "tcp"):
            yield Place("127.0.0.1" if port["address"] == _ANY else port["address"], port["host-port"])
    leased = [address for addresses in vm.get("leased", {}).values() for address in addresses]
    own = [address["ip"] for port in vm["ports"] for address in port["addresses"]]
    for address in dict.fromkeys([*own, *leased]):
        yield Place(address, PORT)


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
        )
    return keys


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
